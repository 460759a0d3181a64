"""Device, and the ranks of several processes under `torchrun`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError

DEVICES = ("auto", "cuda", "mps", "cpu")
# one rank may detect faces in a long video while the others wait
BARRIER_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process among those that `torchrun` started: `rank` of `size`, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """All ranks' values, in order of rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """The ranks as `torchrun` set them in the environment; a single one without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    # gloo also on GPU machines: ranks only wait for each other and exchange reports
    dist.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of `--device`: auto takes cuda, then mps, then cpu.

    :raises InputError: when the named one is not there.
    """
    if name not in DEVICES:
        raise InputError(f"--device {name}: choose from {', '.join(DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name}: PyTorch sees no such device here; give --device auto or cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count()) if name == "cuda" else torch.device(name)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; to a GPU it is on its way while the program goes on."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)
