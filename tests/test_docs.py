"""docs/troubleshooting.md quotes what the program says: a message that was reworded is found here."""

import ast
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = (".", "audio", "face_detection", "guided-diffusion/guided_diffusion", "scripts")


def said(path: Path) -> Iterator[str]:
    """The constant parts of a file's texts; those of an f-string one by one."""
    if path.suffix == ".sh":
        yield path.read_text(encoding="utf-8")
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def texts() -> list[str]:
    paths = [path for folder in FOLDERS for kind in ("*.py", "*.sh") for path in (ROOT / folder).glob(kind)]
    return [os.strerror(errno.ENOSPC), *(text for path in paths for text in said(path))]


def quotes() -> list[str]:
    """What the first column quotes, in the page's order."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    first = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ") and "what you see" not in line]
    return [quote for cell in first for quote in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("quote", quotes())
def test_what_is_quoted_is_said(quote: str, texts: list[str]) -> None:
    parts = [part for part in re.split(r"\s*…\s*", quote) if len(part) > 6]
    for part in parts:
        assert any(part in text for text in texts), part


def test_most_quotes_have_words_to_look_for() -> None:
    assert sum(len(max(quote.split("…"), key=len)) > 6 for quote in quotes()) > 40
