"""Where in a sound somebody speaks: the network of `silero-vad`, whose weights come in its package."""

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from guided_diffusion.errors import InputError

from .blocks import in_blocks

RATE = 16000  # Hz, of the sound that the network hears
HOP = 512  # samples that one probability is for: 32 ms
ONSET, OFFSET = 0.5, 0.35  # probabilities at which a span of speech begins and ends; silero-vad's own
SHORTEST_SPEECH = 0.25  # seconds; a shorter span is a click or a cough
SHORTEST_PAUSE = 0.1  # seconds; a shorter one is a closure inside a word

_CONTEXT = 64  # samples before the hop that the network hears too
_BLOCK = 512  # hops that are heard at once: 16 s


class SpeechDetector(nn.Module):
    """The 16 kHz network of silero-vad 6 (MIT): a spectrum, four convolutions, an LSTM over the hops.

    Attribute names are those of its weights' file. In batches over the hops but for the LSTM it is quicker than
    the package's own loop, and needs no TorchScript. (The same to 1e-6 with the weights of its TorchScript file; those
    here are of another training: 0.008 apart on average.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(
        self, hops: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Speech probability [N] of hops in a row, float32 [N x (_CONTEXT + HOP)], and the LSTM's state after them."""
        x = nn.functional.pad(hops[:, None], (0, _CONTEXT), mode="reflect")
        real, imaginary = self.stft_conv(x).chunk(2, dim=1)
        x = torch.hypot(real, imaginary)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(conv(x))
        hidden = []
        for column in x[:, :, 0].split(1):
            state = self.lstm_cell(column, state)
            hidden.append(state[0])
        return torch.sigmoid(self.final_conv(torch.relu(torch.cat(hidden))[:, :, None])).flatten(), state


@cache
def load_speech_detector() -> SpeechDetector:
    """:raises InputError: silero-vad is not installed."""
    package = find_spec("silero_vad")  # not imported: that sets PyTorch's number of threads
    if package is None or package.origin is None:
        raise InputError("silero-vad is not installed: pip install -r requirements-audio.txt")
    detector = SpeechDetector()
    detector.load_state_dict(load_file(Path(package.origin).parent / "data" / "silero_vad_16k.safetensors"))
    return detector.eval()


def speech_probability(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """How likely somebody speaks in each 32 ms: float32 [ceil(n / HOP)] in [0, 1], in memory of the result alone.

    :param blocks: sound at RATE, float32 [...] in [-1, 1] each, n samples in all.
    :raises InputError: silero-vad is not installed.
    """
    detector = load_speech_detector()
    state = (torch.zeros(1, 128), torch.zeros(1, 128))
    found = [np.zeros(0, np.float32)]
    with torch.inference_mode():
        for hops in _hops(blocks):
            probability, state = detector(torch.from_numpy(hops), state)
            found.append(probability.numpy())
    return np.concatenate(found)


def _hops(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """float32 [up to _BLOCK, _CONTEXT + HOP], each row beginning with the end of the one before."""
    before = np.zeros(_CONTEXT, np.float32)
    for block in in_blocks(blocks, _BLOCK * HOP):
        padded = np.concatenate([before, block, np.zeros(-len(block) % HOP, np.float32)])
        yield np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + HOP)[::HOP].copy()
        before = padded[-_CONTEXT:]


def speech_spans(probability: np.ndarray) -> list[tuple[float, float]]:
    """Spans (start, end) in seconds in which somebody speaks, in order.

    With hysteresis: one begins where the probability reaches ONSET and goes on until it falls below OFFSET. Pauses
    shorter than SHORTEST_PAUSE are bridged, then spans shorter than SHORTEST_SPEECH dropped.

    :param probability: as `speech_probability` returns it.
    """
    spans: list[list[float]] = []
    is_speech = False
    for index, value in enumerate(probability):
        is_speech = value >= (OFFSET if is_speech else ONSET)
        if not is_speech:
            continue
        start, end = index * HOP / RATE, (index + 1) * HOP / RATE
        if spans and start - spans[-1][1] < SHORTEST_PAUSE:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return [(start, end) for start, end in spans if end - start >= SHORTEST_SPEECH]
