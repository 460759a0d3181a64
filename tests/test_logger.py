"""Times, memory and versions of a run. Time stands still except where a test moves it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from guided_diffusion import logger
from guided_diffusion.logger import Timings, versions


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(logger.time, "perf_counter", lambda: clock.now)
    return clock


def test_parts_add_up_nest_and_count_when_they_fail(clock: Clock) -> None:
    timings = Timings()
    clock.wait(1)
    with timings.measure("outer"):
        clock.wait(2)
        with timings.measure("inner"):
            clock.wait(4)

    @timings.measure("inner")
    def fail() -> None:
        clock.wait(8)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert timings.seconds == {"outer": 2, "inner": 12}  # nested time is the inner part's alone
    assert timings.total() == 15


def test_stages_that_pull_on_each_other_are_told_apart(clock: Clock) -> None:
    def source() -> Iterator[int]:
        for k in range(3):
            clock.wait(1)
            yield k

    def stage(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            clock.wait(10)
            yield item

    timings = Timings()
    decoded = timings.iterate("decode", source())
    waited = timings.iterate(None, stage(decoded))  # nobody's
    assert list(timings.iterate("paste", stage(waited))) == [0, 1, 2]
    assert timings.seconds == {"decode": 3, "paste": 30}


def test_threads_do_not_nest_in_each_other(clock: Clock) -> None:
    timings = Timings()

    def other() -> None:
        with timings.measure("sample"):
            clock.wait(5)

    with timings.measure("paste"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        clock.wait(1)
    assert timings.seconds == {"sample": 5, "paste": 6}


def test_closing_a_timed_stream_closes_what_it_times() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(True)

    items = Timings().iterate("decode", source())
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert closed


@pytest.mark.parametrize("items", [[], [1, 2, 3], [None, 0, None], [np.zeros(2), np.ones(2)]])
def test_iterate_hands_on_every_item_and_times_only_their_making(items: list, clock: Clock) -> None:
    """An item that is None, or an array that has no truth value, must not end it."""

    def slow() -> Iterator[object]:
        for item in items:
            clock.wait(2)
            yield item

    timings = Timings()
    seen = []
    for item in timings.iterate("decode", slow()):
        clock.wait(100)
        seen.append(item)
    assert len(seen) == len(items)
    assert all(a is b for a, b in zip(seen, items, strict=True))
    assert timings.seconds == {"decode": 2 * len(items)}


def test_iterate_is_lazy_and_passes_errors_on(clock: Clock) -> None:
    def failing() -> Iterator[int]:
        clock.wait(1)
        yield 1
        clock.wait(1)
        raise OSError("damaged")

    timings = Timings()
    numbers = timings.iterate("decode", failing())
    assert timings.seconds == {}
    assert next(numbers) == 1
    with pytest.raises(OSError, match="damaged"):
        next(numbers)
    assert timings.seconds == {"decode": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
def test_peak_memory_is_the_process_own_in_mebibytes() -> None:
    """getrusage's counter starts with the peak of the process that forked: a benchmark's child showed 3 GB for 1."""
    held = np.ones(1500 << 17)
    code = (
        "import numpy; from guided_diffusion.logger import peak_memory; before = peak_memory()['rss'];"
        "held = numpy.ones(300 << 17); print(before, peak_memory()['rss'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    before, after = map(float, said.stdout.split())
    assert 100 < before < 1200
    assert 290 < after - before < 320
    assert held[-1] == 1


def test_versions_are_the_running_ones() -> None:
    found = versions()
    assert found["python"] == sys.version.split()[0]
    assert str(torch.__version__).startswith(found["torch"])  # without "+cpu"
    assert found["numpy"] == np.__version__


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "PACKAGES", ("torch", "no-such-package"))
    assert set(versions()) == {"python", "opencv", "av", "torch"}
