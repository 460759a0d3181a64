"""A frame's way through pass 2: the record that travels, and the adapters that make stages from plain functions.

A stage is a function from a stream of items to a stream of items. The adapters own all buffering, so that memory is
bounded by the sum of their sizes and reaches. `ahead` lets a stream run in a thread of its own.
"""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

from .color_util import Cast

T = TypeVar("T")

LONGEST_WAIT = 0.1  # s; a thread that waits cannot be interrupted
LONGEST_START = 10  # s; a thread that has not begun by then never will

Box = tuple[int, int, int, int]
"""(y1, y2, x1, x2), half open, in frame pixels; it may reach beyond the frame."""


@dataclass(frozen=True)
class Face:
    """The followed face in one output frame.

    :param index: output frame.
    :param box: where it is.
    :param landmarks: float32 [68, 2], (x, y) in frame pixels, or None when the detector gives none.
    :param is_cut: a shot begins here: what a stage remembers ends.
    :param motion: float32 [2, 3], the head's movement from the previous frame's pixels to this one's; None when it was
        not asked for or cannot be told.
    :param placement: float32 [2, 3], how the crop lies in the frame, to fractions of a pixel and maybe turned: from
        pixels (x, y) of the crop at its box's size to the frame's. The box is then where it would lie upright, in whole
        pixels. None: the crop is what the box shows.
    """

    index: int
    box: Box
    landmarks: np.ndarray | None = None
    is_cut: bool = False
    motion: np.ndarray | None = None
    placement: np.ndarray | None = None

    @property
    def crop_to_frame(self) -> np.ndarray:
        """float64 [3, 3], from pixels (x, y) of the crop at its box's size to the frame's."""
        y1, _, x1, _ = self.box
        placement = ((1, 0, x1), (0, 1, y1)) if self.placement is None else self.placement
        return np.vstack([placement, (0, 0, 1)]).astype(np.float64)

    @property
    def crop_landmarks(self) -> np.ndarray | None:
        """float64 [68, 2], the landmarks in pixels of the crop at its box's size."""
        if self.landmarks is None:
            return None
        to_crop = np.linalg.inv(self.crop_to_frame)
        return np.asarray(self.landmarks @ to_crop[:2, :2].T + to_crop[:2, 2])


@dataclass(frozen=True)
class Item:
    """One output frame on its way. Its arrays are never modified in place.

    :param frame: the source, RGB uint8 [H, W, 3].
    :param face: None: the frame passes through.
    :param crop: what was generated for the face's crop, RGB float32 [h, w, 3] in [0, 1], of any size.
    :param crop_size: height and width in pixels of the crop as the network made it; it may differ from shot to shot.
    :param cast: what the crop lacks to have its frame's colours, where a stage has measured it.
    :param lips: the generated lips, float32 [20, 2], (x, y) in pixels of the crop at its box's size, where a stage has
        looked for them and found some.
    :param picture: the result, RGB uint8 [H, W, 3], once the crop is pasted.
    :param notes: what stages and meters say of this frame.
    """

    frame: np.ndarray
    face: Face | None = None
    crop: np.ndarray | None = None
    crop_size: int | None = None
    cast: Cast | None = None
    lips: np.ndarray | None = None
    picture: np.ndarray | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


Stage = Callable[[Iterator[Item]], Iterator[Item]]

Stages = list[tuple[str, Stage]]
"""A run's stages by name, in order; the last one pastes."""


def per_face(function: Callable[[np.ndarray, Face], np.ndarray]) -> Stage:
    """A stage that makes a new crop of each crop and its face."""

    def stage(items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            if item.crop is None or item.face is None:
                yield item
            else:
                yield replace(item, crop=function(item.crop, item.face))

    return stage


def in_batches(function: Callable[[list[Item]], Sequence[Item]], size: int) -> Stage:
    """A stage for networks: of up to `size` items in a row, those that have a crop go through `function` together.

    :param function: items -> the same number of items, in order. They may be of two shots, with crops of two sizes.
    """

    def stage(items: Iterator[Item]) -> Iterator[Item]:
        while batch := deque(_batch(function, list(islice(items, size)))):
            while batch:
                yield batch.popleft()  # let go: the next batch is pulled while the last of them is on its way

    return stage


def _batch(function: Callable[[list[Item]], Sequence[Item]], items: list[Item]) -> list[Item]:
    places = [place for place, item in enumerate(items) if item.crop is not None]
    if places:
        for place, item in zip(places, function([items[place] for place in places]), strict=True):
            items[place] = item
    return items


def in_windows(function: Callable[[Sequence[Item], int], Item], reach: int) -> Stage:
    """A stage that sees each item's neighbours in time, as they came in: up to `reach` on either side.

    Windows end at cuts and at frames without a crop.

    :param function: (window, place) -> the new item for `window[place]`.
    """

    def stage(items: Iterator[Item]) -> Iterator[Item]:
        run: list[Item] = []  # of one shot; those before `at` are done and only seen
        at = 0

        def done(until: int) -> Iterator[Item]:
            nonlocal at
            while at < until:
                start = max(0, at - reach)
                yield function(run[start : at + reach + 1], at - start)
                at += 1
            seen = max(0, at - reach)
            del run[:seen]
            at -= seen

        for item in items:
            if not (run and _continues(run[-1], item)):
                yield from done(len(run))
                run.clear()
                at = 0
            if item.crop is None:
                yield item
                continue
            run.append(item)
            yield from done(len(run) - reach)
        yield from done(len(run))

    return stage


def _continues(before: Item, item: Item) -> bool:
    """Whether the item is the next frame of the same shot, and has a crop."""
    if item.crop is None or item.face is None or before.face is None:
        return False
    return not item.face.is_cut and item.face.index == before.face.index + 1


def ahead(items: Iterator[T], n: int) -> Generator[T, None, None]:
    """The same items, pulled by a thread of its own up to `n` (at least 1) in advance.

    What the items raise is raised here, in their order. When this generator is closed, or an exception ends its reader,
    the thread is interrupted between two of its instructions and closes `items` before this returns: no work goes on
    unseen. PyTorch's, OpenCV's and FFmpeg's long calls release the interpreter, so that the threads do work at once.
    """
    puller = _Puller(items, n)
    is_end = False
    error: BaseException | None = None
    try:
        with _STARTING:
            puller.start()
        while True:
            try:
                item, error, is_end = puller.get()
            except Empty:
                continue
            if error is not None:
                raise error
            if is_end:
                return
            yield item
            del item
    finally:
        del error  # it holds this frame
        if is_end:
            puller.join()
        else:
            puller.stop()


class _Stopped(BaseException):
    """Raised in the thread of a stream that nobody reads any more."""


# Held while a thread is started, and while one is interrupted: until it runs, a new thread bears the identity of the
# one that starts it, and would be hit in its place, before it says that it has started: the other waits for that for
# ever.
_STARTING = threading.Lock()


class _Puller(threading.Thread):
    """Pulls items, with room for `n` that nobody has taken yet.

    The thread may be interrupted anywhere between two instructions, also between taking a lock and entering the block
    that lets it go. So it uses none of Python's own queues, events and conditions, whose locks would be lost.
    """

    def __init__(self, items: Iterator[Any], n: int) -> None:
        super().__init__(name="ahead", daemon=True)
        self._items = items
        self._pulled: SimpleQueue[tuple[Any, BaseException | None, bool]] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(n):
            self._room.put(None)
        self._gate = threading.Lock()
        self._has_begun = False
        self._can_be_stopped = False
        self._is_unwanted = False

    def get(self) -> tuple[Any, BaseException | None, bool]:
        """(item, error, whether this is the end). :raises Empty: none for LONGEST_WAIT."""
        pulled = self._pulled.get(timeout=LONGEST_WAIT)
        self._room.put(None)
        return pulled

    def run(self) -> None:
        with suppress(_Stopped):
            with self._gate:
                self._can_be_stopped = self._has_begun = True
            self._pull()
        with suppress(_Stopped):
            with self._gate:
                self._can_be_stopped = False
            time.sleep(0)  # what was raised just before comes up here, not in the threading module

    def _pull(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                self._room.get()
                self._pulled.put((item, None, False))
                del item  # else it would live until the next one is there
                if self._is_unwanted:  # an interruption may have come up where it is swallowed, as in a finalizer
                    break
        except BaseException as raised:
            error = raised
        finally:
            with suppress(AttributeError):  # an iterator that is no generator has nothing to close
                self._items.close()  # type: ignore[attr-defined]
        self._pulled.put((None, error, True))
        del error  # it holds this frame

    def stop(self) -> None:
        """End the thread, which is at work, waits for room, or is being started when a signal comes."""
        deadline = time.monotonic() + LONGEST_START
        while not self._has_begun and self in threading.enumerate() and time.monotonic() < deadline:
            time.sleep(0.001)
        with _STARTING, self._gate:
            if self._can_be_stopped:
                identity = ctypes.c_ulong(self.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(_Stopped))
        # not before: it would end what it pulls, and be interrupted in the middle of that
        self._is_unwanted = True
        while self.is_alive():
            self._room.put(None)
            self.join(0.01)
