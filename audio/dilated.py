"""The network that our own listeners share: convolutions over time that hear ever further."""

import torch
from torch import nn


class DilatedNetwork(nn.Module):
    """Convolutions over time, dilated ever further (as in Bai et al. 2018, but hearing what comes next, too), each on
    top of what is there already. `reach` steps are heard on either side.

    :param n_in, n_out: features of a step.
    :param width: channels.
    """

    def __init__(self, n_in: int, width: int, dilations: tuple[int, ...], n_out: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(n_in, width, 3, padding=1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.mixed = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.last = nn.Conv1d(width, n_out, 1)
        self.reach = 1 + sum(dilations)

    def convolved(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, n, n_in] to [N, n, n_out]."""
        x = self.first(x.transpose(1, 2))
        for dilated, mixed in zip(self.dilated, self.mixed, strict=True):
            x = x + mixed(nn.functional.gelu(dilated(_normalized(x))))
        return self.last(_normalized(x)).transpose(1, 2)


def _normalized(x: torch.Tensor) -> torch.Tensor:
    """Of each step over the channels."""
    return nn.functional.layer_norm(x.transpose(1, 2), x.shape[1:2]).transpose(1, 2)
