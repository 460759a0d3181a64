"""Streams of sound."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from audio.blocks import in_blocks, in_pairs


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 30))
def test_blocks_have_the_size_and_hold_the_same_sound(lengths: list[int], size: int) -> None:
    sound = np.arange(sum(lengths), dtype=np.float32)
    blocks = list(in_blocks(np.split(sound, np.cumsum(lengths)[:-1]), size))
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert all(0 < len(block) <= size for block in blocks)
    assert np.array_equal(np.concatenate([[], *blocks]), sound)


@given(st.integers(0, 60), st.integers(-1, 4), st.integers(1, 30))
def test_a_pair_has_the_length_of_the_first(n: int, more: int, size: int) -> None:
    """Which is rounded otherwise at another rate."""
    first, second = np.arange(n, dtype=np.float32), np.arange(max(n + more, 0), dtype=np.float32)
    pairs = list(in_pairs([first], np.array_split(second, 3), size))
    assert [len(block) for block, _ in pairs] == [len(other) for _, other in pairs]
    one, other = (np.concatenate([[], *blocks]) for blocks in (zip(*pairs, strict=True) if pairs else ([], [])))
    assert np.array_equal(one, first)
    assert np.array_equal(other, np.pad(second, (0, 4))[:n])
