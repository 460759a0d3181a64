"""Arrays in .npz files that appear when they are complete, and that say what is wrong with a foreign one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from guided_diffusion.errors import InputError
from guided_diffusion.store import replace_when_complete

Loaded = TypeVar("Loaded")
Arrays = Mapping[str, np.ndarray]


def save_arrays(path: str | Path, arrays: Arrays) -> None:
    with replace_when_complete(Path(path)) as part, open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_arrays(path: str | Path, what: str, build: Callable[[dict[str, Any]], Loaded]) -> Loaded:
    """What `build` makes of an .npz file's arrays. :raises InputError: it is not `what`."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return build(dict(stored))
    except OSError:
        raise
    except Exception as error:  # a foreign file makes NumPy and zipfile fail in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: not {what} ({reason}); delete the file") from error


def check_arrays(arrays: Arrays, expected: Mapping[str, tuple[type, tuple[int, ...]]]) -> None:
    """:raises KeyError: an array is unknown. :raises ValueError: one is of another type or shape."""
    for name, value in arrays.items():
        if (value.dtype, value.shape) != expected[name]:
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}")
