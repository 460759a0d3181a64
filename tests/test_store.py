"""Keys, digests, chunks, and files that are there whole or not at all."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from guided_diffusion import store
from guided_diffusion.store import ChunkStore, content_key, file_digest, replace_when_complete


@pytest.mark.parametrize("size", [0, 5, 16, 17, 40])
def test_file_digest_is_sha256(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "HASH_BLOCK", 16)
    content = bytes(range(size))
    path = tmp_path / "é file"
    path.write_bytes(content)
    assert file_digest(str(path)) == hashlib.sha256(content).hexdigest()


def test_content_key_depends_on_names_and_values_not_on_their_order() -> None:
    parts = {"seed": 7, "options": {"a": 1, "b": [1, 2]}}
    key = content_key(parts)
    assert key == content_key({"options": {"b": [1, 2], "a": 1}, "seed": 7})
    assert key.isalnum()
    others = [
        {**parts, "seed": 8},
        {**parts, "seed": "7"},
        {"sed": 7, "options": parts["options"]},
        {**parts, "options": {"a": 1, "b": [2, 1]}},
        {**parts, "more": None},
    ]
    assert len({key, *map(content_key, others)}) == len(others) + 1


def test_chunks_come_back_under_their_number(tmp_path: Path) -> None:
    chunks = ChunkStore(tmp_path / "work folder" / "samples-é")
    crops = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    assert chunks.load(0) is None
    chunks.save(0, crops)
    chunks.save(1, crops[:1])
    for number, expected in ((0, crops), (1, crops[:1])):
        loaded = ChunkStore(chunks.folder).load(number)
        assert loaded is not None
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, expected)
    assert chunks.load(2) is None
    assert len(list(chunks.folder.iterdir())) == 2


def test_failed_save_leaves_the_old_chunk_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = ChunkStore(tmp_path)
    old = np.zeros((1, 2, 2, 3), np.uint8)
    chunks.save(0, old)

    def full_disk(file: object, *_args: object, **_options: object) -> None:
        file.write(b"\x93NUMPY")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    for number in (0, 1):
        with pytest.raises(OSError, match="No space"):
            chunks.save(number, old + 1)
    np.testing.assert_array_equal(chunks.load(0), old)
    assert chunks.load(1) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_target_is_replaced_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "é.mp4"
    for content in ("first", "second"):
        with replace_when_complete(path) as part:
            assert part.parent == path.parent  # the same file system: os.replace is atomic
            part.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before_writing", [True, False])
def test_target_stays_when_the_block_fails(error: type[BaseException], before_writing: bool, tmp_path: Path) -> None:
    path = tmp_path / "result.mp4"
    path.write_text("old")

    def write() -> None:
        with replace_when_complete(path) as part:
            if not before_writing:
                part.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "result.mp4"
    link.symlink_to(tmp_path / "disk" / "real.mp4")  # leads nowhere yet
    for content in ("first", "second"):
        with replace_when_complete(link) as part:
            assert part.parent == tmp_path / "disk"
            part.write_text(content)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "real.mp4").read_text() == content
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
def test_the_longest_names_can_be_written(name: str, tmp_path: Path) -> None:
    """The temporary name was the target's and seven bytes more."""
    with replace_when_complete(tmp_path / name) as part:
        part.write_text("content")
    assert (tmp_path / name).read_text() == "content"


def test_two_writers_of_one_target_do_not_meet_and_the_dead_are_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "result.mp4"
    code = (
        "import sys, time; from pathlib import Path; from guided_diffusion.store import replace_when_complete\n"
        "with replace_when_complete(Path(sys.argv[1])) as part:\n"
        "    part.write_text('theirs'); print('written', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=environment)
    assert other.stdout is not None
    other.stdout.readline()
    with replace_when_complete(path) as part:
        assert len(list(tmp_path.iterdir())) == 1  # the other one's, which runs
        part.write_text("ours")
    assert path.read_text() == "ours"
    other.kill()
    other.wait()
    assert len(list(tmp_path.iterdir())) == 2
    with replace_when_complete(path) as part:
        part.write_text("again")
    assert list(tmp_path.iterdir()) == [path]


def test_what_gets_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed before it was written out, a file had no bytes after a power loss."""
    order = []
    monkeypatch.setattr(os, "fsync", lambda _: order.append("written out"))
    plain = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("named"), plain(a, b)))
    with replace_when_complete(tmp_path / "file") as part:
        part.touch()
    assert order == ["written out", "named"]


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    """NumPy said "24576 requested and 16256 written"."""
    store_ = ChunkStore(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            store_.save(3, np.zeros((1, 64, 64, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "000003.npy")
    assert list(tmp_path.iterdir()) == []
