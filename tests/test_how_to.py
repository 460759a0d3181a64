"""docs/how-to-add-a-stage.md works: its code is taken out of the page and run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guided_diffusion.errors import InputError
from guided_diffusion.options import Options, flag
from guided_diffusion.streams import Face, Item, Stages, per_face
from post_processing import paste_stage

PAGE = Path(__file__).parent.parent / "docs" / "how-to-add-a-stage.md"
PATHS = {"video_path": "v", "audio_path": "a", "model_path": "m"}


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """The function, the flag, the place in the list, the test."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(blocks: list[str]) -> dict[str, Any]:
    """What the page's function and test define."""
    defined: dict[str, Any] = {"np": np, "Face": Face}
    for block in (blocks[0], blocks[3]):
        exec(compile(block, str(PAGE), "exec"), defined)
    return defined


@pytest.fixture(scope="module")
def with_flag(blocks: list[str]) -> Callable[..., Options]:
    """Options with the page's flag."""
    body: dict[str, Any] = {"flag": flag, "Options": Options, "dataclass": dataclass}
    exec(f"@dataclass(frozen=True)\nclass WithFlag(Options):\n    {blocks[1]}", body)
    return partial(body["WithFlag"], **PATHS)


def stages_of(options: Options, blocks: list[str], names: dict[str, Any]) -> Stages:
    """The page's lines of build_stages, and the paste."""
    stages: Stages = []
    known = {**names, "partial": partial, "per_face": per_face, "options": options, "stages": stages, "hidden": 0.5}
    exec(compile(blocks[2], str(PAGE), "exec"), known)
    return [*stages, ("paste", paste_stage())]


def test_there_is_one_block_for_each_step(blocks: list[str]) -> None:
    assert len(blocks) == 4
    assert len(blocks[0].splitlines()) <= 20


def test_the_pages_own_test_passes_and_would_fail(names: dict[str, Any]) -> None:
    names["test_warmth"]()
    names_without = {**names, "warmer": lambda crop, *_: crop}
    broken = type(names["test_warmth"])(names["test_warmth"].__code__, names_without)
    with pytest.raises(AssertionError):
        broken()


def test_the_flag_is_off_by_default_and_checked(with_flag: Callable[..., Options]) -> None:
    assert with_flag().affecting("output")["warmth"] == 0
    with pytest.raises(InputError, match=r"--warmth 0\.5: give a value from 0 to 0\.3"):
        with_flag(warmth=0.5)


def test_the_stage_comes_into_the_frame(
    blocks: list[str], names: dict[str, Any], with_flag: Callable[..., Options]
) -> None:
    frame = np.full((80, 80, 3), 128, np.uint8)
    item = Item(frame, Face(0, (8, 72, 8, 72)), np.full((64, 64, 3), 128 / 255, np.float32))
    pictures = {}
    for warmth in (0.0, 0.2):
        stages = stages_of(with_flag(warmth=warmth), blocks, names)
        items = iter([item, Item(frame)])
        for _, stage in stages:
            items = stage(items)
        pictures[warmth], without_face = (item.picture for item in items)
        np.testing.assert_array_equal(without_face, frame)
    np.testing.assert_array_equal(pictures[0.0], frame)
    red, _, blue = pictures[0.2][40:72, 8:72].mean(axis=(0, 1))
    assert red > 140
    assert blue < 116
    np.testing.assert_array_equal(pictures[0.2][:40], frame[:40])
