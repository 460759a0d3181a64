"""Sound as a stream of blocks, float32 [n] each, so that memory does not grow with its length."""

from collections.abc import Iterable, Iterator
from itertools import chain

import librosa
import numpy as np
import soxr


def in_blocks(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same sound in blocks of `size` samples, the last of 1 to `size`."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) - len(rest) % size
        yield from rest[:whole].reshape(-1, size)
        rest = rest[whole:]
    if len(rest):
        yield rest


def in_pairs(
    blocks: Iterable[np.ndarray], others: Iterable[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two sounds in blocks as of `in_blocks`, the second as long as the first: cut, or with a little silence after it,
    as lengths at other rates are rounded."""
    padded = chain(others, [np.zeros(4, np.float32)])  # more than rounding lacks
    for block, other in zip(in_blocks(blocks, size), in_blocks(padded, size), strict=False):
        yield block, other[: len(block)]


def resampled(blocks: Iterable[np.ndarray], rate: int, target: int) -> Iterator[np.ndarray]:
    """Blocks of what `librosa.resample(..., res_type="soxr_hq")` makes of the whole, to the last bit."""
    if rate == target:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="soxr_hq")
    n_in = n_out = 0
    for block in blocks:
        n_in += len(block)
        resampled = stream.resample_chunk(block)
        n_out += len(resampled)
        yield resampled
    # librosa's length, rounding included
    wanted = int(np.ceil(n_in * (float(target) / rate))) - n_out
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    yield librosa.util.fix_length(rest, size=wanted)
