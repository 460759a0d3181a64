"""Jobs: a list's lines, and what is refused before any work is done."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_video

from guided_diffusion.errors import InputError
from guided_diffusion.jobs import Job, check_files, check_job, check_report, read_filelist
from guided_diffusion.options import Options
from guided_diffusion.video_util import VideoWriter


def write_list(tmp_path: Path, text: str) -> str:
    (tmp_path / "list.txt").write_text(text)
    return str(tmp_path / "list.txt")


def test_lines_are_jobs(tmp_path: Path) -> None:
    (tmp_path / "c d.wav").touch()
    jobs = read_filelist(write_list(tmp_path, "a/b v\n\nc d.wav\tv w\n"), str(tmp_path), Path("out"), save_orig=True)
    assert jobs == [
        Job(f"{tmp_path}/v.mp4", f"{tmp_path}/a/b.mp4", "out/a.b_v.mp4"),
        Job(f"{tmp_path}/v w.mp4", f"{tmp_path}/c d.wav", "out/c d.wav_v w.mp4"),
    ]
    assert jobs[0].orig_path == "out/a.b_v_orig.mp4"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b c\n", r"line 1: 'a b c' is not 'audio_name video_name'"),
        ("\n \n", "has no lines"),
        ("a/b v\nx v\na.b v\n", r"lines 1 and 3 write one file, out/a\.b_v\.mp4; drop one, or rename"),
        ("a v\na v\n", "lines 1 and 2 write one file"),
        ("a v\na v_orig\n", r"lines 1 and 2 write one file, out/a_v_orig\.mp4"),
    ],
)
def test_lists_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    """a/b and a.b get one name, and so do a line's _orig and another's result: the later replaced the earlier."""
    with pytest.raises(InputError, match=words):
        read_filelist(write_list(tmp_path, text), str(tmp_path), Path("out"), save_orig=True)


@pytest.fixture
def inputs(tmp_path: Path) -> Job:
    video = write_video(tmp_path / "in.mp4", np.zeros((2, 32, 32, 3), np.uint8))
    return Job(str(video), str(video), str(tmp_path / "talk.mp4"))


def test_a_foreign_file_is_not_overwritten_and_ours_is(inputs: Job, tmp_path: Path) -> None:
    """--save_orig, which is on by default, replaced any talk_orig.mp4 beside talk.mp4."""
    orig = write_video(tmp_path / "talk_orig.mp4", np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match=r"would overwrite .*talk_orig\.mp4.*--save_orig False"):
        check_job(inputs, save_orig=True)
    check_job(inputs, save_orig=False)
    for suffix in ("mp4", "mov", "mkv"):
        job = Job(inputs.video_path, inputs.audio_path, str(tmp_path / f"talk.{suffix}"))
        with VideoWriter(job.orig_path, (32, 32), 25, is_original=True) as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8))
        check_job(job, save_orig=True)
    orig.write_text("no video")
    with pytest.raises(InputError, match="would overwrite"):
        check_job(inputs, save_orig=True)


def test_a_folder_or_a_pipe_is_no_input(inputs: Job, tmp_path: Path) -> None:
    """They were said not to exist."""
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, words in ((str(tmp_path), "--video_path .* is a folder"), (str(tmp_path / "pipe.mp4"), "is a pipe")):
        with pytest.raises(InputError, match=words):
            check_job(Job(path, inputs.audio_path, inputs.out_path), save_orig=False)
    with pytest.raises(InputError, match=r"--audio_path .*nothing.* does not exist"):
        check_job(Job(inputs.video_path, "nothing", inputs.out_path), save_orig=False)


def test_files_beside_the_result_are_checked_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    check_files(None, None)
    check_files(str(tmp_path / "new" / "work"), "stats.json")
    for work_dir, stats, words in (
        (str(file / "work"), None, "--work_dir .*file/work: .*file' is not a folder that you may write to; give anoth"),
        (None, str(file / "stats.json"), r"--stats .*stats\.json: .* is not a folder"),
        (None, str(tmp_path), "--stats .*: is a folder; name a file"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            check_files(work_dir, stats)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("is_list", "given", "stats", "words"),
    [
        (False, "q/r.html", "q/r.json", r"--stats .*q/r\.json: --quality_report .*q/r\.html writes this file"),
        (False, "q/r.html", "q/../q/r.html", "writes this file"),
        (False, "folder.html", None, r"--quality_report .*folder\.html: .*folder\.json' cannot be written: it is a"),
        (False, f"{'x' * 251}.html", None, "has 256 bytes; give at most 255"),
        (True, "r.html", "r_talk.json", "--stats .* writes this file"),
        (True, f"{'x' * 246}.html", None, "has 256 bytes; give at most 255"),
        (True, "r.html", "r.json", None),
        (True, "folder.html", None, None),
        (False, f"{'x' * 250}.html", "s.json", None),
        (False, "q/r.html", "r.json", None),
        (False, None, "r.json", None),
    ],
)
def test_a_report_has_its_files_to_itself(
    is_list: bool, given: str | None, stats: str | None, words: str | None, tmp_path: Path
) -> None:
    """--stats r.json replaced the r.json of --quality_report r.html without a word."""
    (tmp_path / "folder.json").mkdir()
    options = Options(
        video_path="v", audio_path="a", model_path="m", generate_from_filelist=is_list,
        quality_report=given and str(tmp_path / given), stats=stats and str(tmp_path / stats),
    )  # fmt: skip
    job = Job("v", "a", "out/talk.mp4")
    if words is None:
        check_report(job, options)
        return
    with pytest.raises(InputError, match=words) as caught:
        check_report(job, options)
    assert "\n" not in str(caught.value)
