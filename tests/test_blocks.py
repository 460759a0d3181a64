"""Streams of sound."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from audio.blocks import in_blocks


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 30))
def test_blocks_have_the_size_and_hold_the_same_sound(lengths: list[int], size: int) -> None:
    sound = np.arange(sum(lengths), dtype=np.float32)
    blocks = list(in_blocks(np.split(sound, np.cumsum(lengths)[:-1]), size))
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert all(0 < len(block) <= size for block in blocks)
    assert np.array_equal(np.concatenate([[], *blocks]), sound)
