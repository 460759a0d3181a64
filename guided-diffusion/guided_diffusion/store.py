"""Files: keys made from content, chunks of samples, files that appear when they are complete, downloads."""

import hashlib
import io
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from .errors import InputError

HASH_BLOCK = 1 << 20
TIMEOUT = 30  # s without an answer from a server


def file_digest(path: str) -> str:
    """SHA-256 of a file's content, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def content_key(parts: dict[str, Any]) -> str:
    """A short name for everything that a stored result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_array(path: Path) -> np.ndarray | None:
    """What `save_array` wrote; None when it has not been completed, or was damaged by a power loss."""
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (EOFError, FileNotFoundError, ValueError):
        return None


def save_array(path: Path, array: np.ndarray, is_one_of_many: bool = False) -> None:
    """Writes an .npy as `replace_when_complete` does: after a kill it is there whole or not at all."""
    with replace_when_complete(path, is_one_of_many) as part, open(part, "wb") as file:
        content = io.BytesIO()  # to a file NumPy would not say that the disk is full
        np.save(content, array, allow_pickle=False)
        file.write(content.getbuffer())


@dataclass(frozen=True)
class ChunkStore:
    """Sampled crops of one job on disk, a file per batch, in a folder that is named by the job's key."""

    folder: Path

    def load(self, batch: int) -> np.ndarray | None:
        """Crops uint8 [N, h, w, 3] of a batch; None when it has not been completed, or was damaged by a power loss."""
        return load_array(self._path(batch))

    def save(self, batch: int, crops: np.ndarray) -> None:
        """Store a batch's crops; after a kill the file is there whole or not at all."""
        save_array(self._path(batch), crops, is_one_of_many=True)

    def _path(self, batch: int) -> Path:
        return self.folder / f"{batch:06d}.npy"


def writable_folder(path: str) -> str:
    """The folder that exists already on the way to `path`, which is a folder or is to become one.

    :raises InputError: when it is no folder that may be written to.
    """
    folder = os.path.abspath(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder!r} is not a folder that you may write to")
    return folder


def check_writable(path: str) -> None:
    """:raises InputError: unless a file can be written to `path`. Creates nothing, so call it before the work."""
    target = os.path.realpath(path)  # of a symbolic link, also one that leads nowhere yet
    if os.path.isdir(target):
        raise InputError(f"{path!r} cannot be written: it is a folder; name a file")
    if os.path.exists(target) and not os.path.isfile(target):
        raise InputError(f"{path!r} cannot be written: it is a pipe or device; name a file")
    try:
        folder = writable_folder(os.path.dirname(target))
    except InputError as error:
        raise InputError(f"{path!r} cannot be written: {error}") from None
    longest = os.pathconf(folder, "PC_NAME_MAX")
    for name in os.path.relpath(target, folder).split(os.sep):
        if len(os.fsencode(name)) > longest:
            raise InputError(
                f"{path!r} cannot be written: {name!r} has {len(os.fsencode(name))} bytes; give at most {longest}"
            )


@contextmanager
def replace_when_complete(path: Path, is_one_of_many: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the target's place when the block ends well.

    A symbolic link stays one: its target is written. What was written is on the disk before it gets its name, so that
    a power loss leaves the old file or the new one. What killed processes of this machine had begun to write into the
    folder is removed.

    :param is_one_of_many: remove that at the first of them only: listing many takes longer than writing one.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    (_clear_leftovers_once if is_one_of_many else _clear_leftovers)(path.parent)
    part = _part_path(path)
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _part_path(path: Path) -> Path:
    """This process's temporary name for `path`.

    Each process has its own, so that two writers of one target do not meet; and it is short, so that a target's name
    may have as many bytes as the file system takes.
    """
    stem = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{_machine()}-{stem}-{os.getpid()}.part")


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _clear_leftovers(folder: Path) -> None:
    for part in folder.glob(f".{_machine()}-*.part"):
        if not _is_running(int(part.stem.split("-")[-1])):
            part.unlink(missing_ok=True)


_clear_leftovers_once = cache(_clear_leftovers)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_digest(path: Path, sha256: str) -> None:
    """:raises InputError: naming both hashes, when the file's content is not the one that is meant."""
    found = file_digest(str(path))
    if found != sha256:
        raise InputError(f"{path}: its SHA-256 is {found}, not {sha256}: damaged, or another file; delete it")


def download(url: str, path: Path, sha256: str) -> None:
    """Fetch a file whose content is known. It appears at `path` when it is there whole and right.

    An interrupted download goes on where it stopped: what has come lies beside `path`. A second process waits for the
    first.

    :raises InputError: the server cannot be reached, its answer ends early, or the content is another.
    """
    import fcntl  # which Windows lacks; nothing else here needs it

    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f"{path.name}.part")
    with open(begun, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)  # somebody else may have fetched more meanwhile
        if path.is_file():
            begun.unlink(missing_ok=True)
            return
        if file_digest(str(begun)) != sha256:
            _fetch(url, file)
        try:
            check_digest(begun, sha256)
        except InputError:
            begun.unlink()
            raise
        with replace_when_complete(path) as part:
            os.replace(begun, part)


def _fetch(url: str, file: BinaryIO) -> None:
    """Append what a server has beyond the file's end; all of it where the server does not know how to go on."""
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={file.tell()}-"}), timeout=TIMEOUT) as answer:
            if answer.status != HTTPStatus.PARTIAL_CONTENT:
                file.truncate(0)
            end = os.fstat(file.fileno()).st_size + int(answer.headers["Content-Length"] or 0)
            shutil.copyfileobj(answer, file)
            file.flush()
    except (OSError, HTTPException) as error:  # URLError is an OSError
        if isinstance(error, HTTPError) and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            file.truncate(0)  # what has come is not the file's beginning
        raise InputError(f"{url} could not be fetched ({error}); the same command goes on where it stopped") from None
    if os.fstat(file.fileno()).st_size < end:
        raise InputError(f"{url}: the answer ended early; the same command goes on where it stopped")
