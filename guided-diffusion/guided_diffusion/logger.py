"""Where a run's time and memory went."""

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TypeVar

import torch

T = TypeVar("T")

PACKAGES = ("torch", "numpy", "opencv-python", "av", "librosa", "scipy", "face-alignment", "dlib-bin", "safetensors")


class Timings:
    """Seconds spent in each part of a run, by the part's name, and since the beginning."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def iterate(self, part: str, items: Iterator[T]) -> Iterator[T]:
        """Hand on `items`, adding the time that it takes to get them to `part`."""
        while True:
            with self.measure(part):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._start


def peak_memory() -> dict[str, float]:
    """Largest resident size of this process, and of its CUDA allocations, in MiB."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    memory = {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        memory["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
