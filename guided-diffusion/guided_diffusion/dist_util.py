"""Device, the ranks of several processes under `torchrun`, and the work folder's chunks."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .errors import InputError

DEVICES = ("auto", "cuda", "mps", "cpu")
# one rank may detect faces in a long video while the others wait
BARRIER_TIMEOUT = timedelta(days=1)
HASH_BLOCK = 1 << 20


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


def file_digest(path: str) -> str:
    """SHA-256 of a file's content, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def content_key(parts: dict[str, Any]) -> str:
    """A short name for everything that a stored result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ChunkStore:
    """Sampled crops of one job on disk, a file per batch, in a folder that is named by the job's key."""

    folder: Path

    def load(self, batch: int) -> np.ndarray | None:
        """Crops uint8 [N, h, w, 3] of a batch, or None when it has not been completed."""
        path = self._path(batch)
        return np.load(path, allow_pickle=False) if path.is_file() else None

    def save(self, batch: int, crops: np.ndarray) -> None:
        """Store a batch's crops; after a kill the file is there whole or not at all."""
        with replace_when_complete(self._path(batch)) as part, open(part, "wb") as file:
            np.save(file, crops, allow_pickle=False)

    def _path(self, batch: int) -> Path:
        return self.folder / f"{batch:06d}.npy"


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the target's place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
