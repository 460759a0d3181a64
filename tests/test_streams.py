"""Adapters: what goes through a stage, in which order, and how much is held; streams that run ahead."""

import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided_diffusion import streams
from guided_diffusion.streams import Face, Item, Stage, ahead, in_batches, in_windows, per_face

FRAME = np.zeros((2, 2, 3), np.uint8)


def items_of(shots: str) -> list[Item]:
    """A letter is a frame with a face, another letter than before it begins a shot; "." is a frame without one."""
    items, before = [], ""
    for index, letter in enumerate(shots):
        face = Face(index, (0, 1, 0, 1), is_cut=bool(before) and letter != before)
        crop = np.full((1, 1, 3), index / 100, np.float32)
        items.append(Item(FRAME) if letter == "." else Item(FRAME, face, crop))
        before = before if letter == "." else letter
    return items


def number(item: Item) -> int | None:
    return None if item.crop is None else round(100 * float(item.crop[0, 0, 0]))


def numbers(items: Sequence[Item]) -> list[int | None]:
    return [number(item) for item in items]


def double(crop: np.ndarray, face: Face) -> np.ndarray:
    assert face.index == round(100 * float(crop[0, 0, 0]))
    return 2 * crop


shots = st.text("ab.", max_size=25)


@given(shots)
def test_per_face_leaves_frames_without_one(text: str) -> None:
    items = items_of(text)
    made = list(per_face(double)(iter(items)))
    assert numbers(made) == [None if n is None else 2 * n for n in numbers(items)]
    assert all(item is given for item, given in zip(made, items, strict=True) if given.crop is None)


@given(shots, st.integers(1, 7))
def test_in_batches_keeps_order_and_size(text: str, size: int) -> None:
    calls = []

    def add_note(batch: list[Item]) -> list[Item]:
        assert all(item.crop is not None for item in batch)
        calls.append(len(batch))
        return [replace(item, notes={"number": float(number(item) or 0)}) for item in batch]

    items = items_of(text)
    made = list(in_batches(add_note, size)(iter(items)))
    assert numbers(made) == numbers(items)
    assert [item.notes for item in made] == [{} if n is None else {"number": float(n)} for n in numbers(items)]
    assert 0 not in calls
    assert max(calls, default=0) <= size
    assert sum(calls) == len(items) - text.count(".")


def test_a_batch_function_that_loses_an_item_is_found_out() -> None:
    with pytest.raises(ValueError, match="zip"):
        list(in_batches(lambda batch: batch[1:], 3)(iter(items_of("aaa"))))


@given(shots, st.integers(0, 4))
def test_windows_are_symmetric_and_end_at_cuts_and_gaps(text: str, reach: int) -> None:
    items = items_of(text)
    windows = {}

    def note(window: Sequence[Item], place: int) -> Item:
        windows[number(window[place])] = numbers(window)
        return replace(window[place], crop=np.full((1, 1, 3), 0.9, np.float32))

    made = list(in_windows(note, reach)(iter(items)))
    assert numbers(made) == [None if n is None else 90 for n in numbers(items)]
    for index, letter in enumerate(text):
        if letter == ".":
            continue
        start = stop = index
        while start > 0 and start > index - reach and text[start - 1] == letter:
            start -= 1
        while stop + 1 < len(text) and stop < index + reach and text[stop + 1] == letter:
            stop += 1
        assert windows[index] == list(range(start, stop + 1))


@pytest.mark.parametrize(
    ("stage", "most"),
    [(per_face(double), 1), (in_batches(lambda batch: batch, 4), 4), (in_windows(lambda w, k: w[k], 3), 7)],
    ids=["per_face", "in_batches", "in_windows"],
)
def test_what_a_stage_holds_is_bounded(stage: Stage, most: int) -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    largest = 0

    def endless() -> Iterator[Item]:
        nonlocal largest
        for item in items_of("a" * 40):
            frame = Frame((2, 2, 3), np.uint8)
            alive.add(frame)
            largest = max(largest, len(alive))
            yield replace(item, frame=frame)
            del frame

    for item in stage(endless()):
        del item
    assert largest <= most + 2  # the one that is on its way in, and the one that is on its way out


class Frame(np.ndarray):
    """An array that can be counted while it lives."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


# ------------------------------------------------------------------------------------------------------- ahead


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@given(st.lists(st.integers(), max_size=30), st.integers(1, 5))
def test_ahead_gives_the_same_items(values: list[int], n: int) -> None:
    assert list(ahead(iter(values), n)) == values


def test_ahead_works_in_another_thread_and_no_further_than_n() -> None:
    pulled = []

    def source() -> Iterator[int]:
        for k in range(20):
            pulled.append(threading.get_ident())
            yield k

    items = ahead(source(), 3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(pulled) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(pulled) == 5  # handed on, three in the queue, one that waits for room
    assert threading.get_ident() not in pulled
    assert list(items) == list(range(1, 20))


def test_ahead_hands_on_an_exception_behind_what_came_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    items = ahead(source(), 5)
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)
    assert not running()


@pytest.mark.parametrize("state", ["waits for room", "works"])
def test_closing_ends_the_thread_and_its_source(state: str) -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield 0
            while state == "works":  # seconds of work between two items
                time.sleep(0.001)
            while True:
                yield 1
        finally:
            closed.set()

    items = ahead(source(), 1)
    assert next(items) == 0
    time.sleep(0.02)
    start = time.monotonic()
    items.close()
    assert time.monotonic() - start < 2
    assert closed.is_set()
    assert not running()


def test_a_thread_that_waits_for_another_is_ended_at_once() -> None:
    """It waited without end for the first thread's item, of minutes of sampling, before it could be interrupted."""
    working = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        working.set()
        for _ in range(10_000):
            time.sleep(0.001)
        yield 1

    items = ahead(ahead(slow(), 1), 1)
    assert next(items) == 0
    working.wait()
    start = time.monotonic()
    items.close()
    assert time.monotonic() - start < 5
    assert not running()


def test_an_interruption_that_is_swallowed_ends_the_thread_at_the_next_item() -> None:
    """As it is in a finalizer: the stream was pulled to its end."""
    pulled = []

    def source() -> Iterator[int]:
        for k in range(1000):
            pulled.append(k)
            try:
                time.sleep(0.005)
            except BaseException:
                if k > 900:
                    raise
            yield k

    items = ahead(source(), 1)
    assert next(items) == 0
    time.sleep(0.02)
    items.close()
    assert len(pulled) < 100
    assert not running()


def test_an_error_is_not_kept_alive() -> None:
    """Frames of a failed job, on the way when it failed, lived into the next one."""
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()

    def source() -> Iterator[Frame]:
        frame = Frame((2, 2, 3), np.uint8)
        alive.add(frame)
        yield frame
        raise ValueError("damaged")

    gc.disable()
    try:
        items = ahead(source(), 2)
        next(items)
        with pytest.raises(ValueError, match="damaged"):
            next(items)
        assert not alive
    finally:
        gc.enable()


@pytest.mark.parametrize("interval", [1e-6, 1e-4])
def test_closing_at_any_moment_ends_all_threads(interval: float) -> None:
    """An interruption between taking a queue's lock and holding it left the lock taken for ever."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        for k in range(300):
            items = ahead(ahead(iter(range(10**6)), 1 + k % 2), 1 + k % 3)
            for _ in range(k % 5):
                next(items)
            items.close()
    finally:
        sys.setswitchinterval(before)
    assert not running()


def test_a_signal_while_the_thread_is_started_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        plain(thread)
        raise SystemExit(143)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(SystemExit):
        next(ahead(iter(range(10**9)), 1))
    assert not running()


def test_a_reader_that_fails_ends_a_chain_of_threads() -> None:
    def read() -> None:
        for value in ahead(ahead(iter(range(10**9)), 2), 2):
            if value == 5:
                raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        read()
    gc.collect()
    assert not running()


def test_ahead_does_not_keep_what_was_read() -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()

    def source() -> Iterator[Frame]:
        for _ in range(30):
            frame = Frame((2, 2, 3), np.uint8)
            alive.add(frame)
            yield frame
            del frame

    largest = 0
    for frame in ahead(source(), 2):
        del frame
        time.sleep(0.002)
        largest = max(largest, len(alive))
    assert largest <= 4  # two in the queue, one that waits for room, one that is read
    assert not alive


def test_no_thread_is_interrupted_while_one_is_started() -> None:
    """A thread that is starting another lends it its identity: the other was hit, and both were waited for for ever.

    A run that was terminated as its threads began did not end, once in some hundred.
    """
    puller = streams._Puller(iter(range(9)), 1)
    puller.start()
    stopper = threading.Thread(target=puller.stop)
    with streams._STARTING:
        stopper.start()
        time.sleep(0.05)
        assert puller.is_alive()
    stopper.join(5)
    assert not puller.is_alive()
