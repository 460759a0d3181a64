"""What is to be made from what: one video, or the lines of a list; checked before any work is done."""

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .media_util import check_source
from .options import Options
from .store import check_writable, writable_folder
from .video_util import check_target, is_original


@dataclass(frozen=True)
class Job:
    video_path: str
    audio_path: str
    out_path: str

    @property
    def orig_path(self) -> str:
        path = Path(self.out_path)
        return str(path.with_name(f"{path.stem}_orig{path.suffix}"))


def read_filelist(filelist: str, folder: str, out_folder: Path, save_orig: bool) -> list[Job]:
    """The jobs of a list (REFERENCE.md: Filelist mode).

    :param filelist: a file of lines "audio_name video_name", with a tab between names that have spaces.
    :param folder: where the named files are, with the name as it is or with .mp4 behind it.
    :param out_folder: for the results, `<audio with / as .>_<video with / as .>.mp4`.
    :param save_orig: each line also writes its job's `orig_path`.
    :raises InputError: when the list cannot be read, a line is not two names, or two lines write one file.
    """
    try:
        lines = Path(filelist).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text"
        raise InputError(f"--filelist {filelist}: {reason}; give lines 'audio_name video_name'") from None
    jobs: list[Job] = []
    writers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        names = line.strip().split("\t") if "\t" in line.strip() else line.split()
        if not names:
            continue
        if len(names) != 2:
            raise InputError(f"--filelist {filelist} line {number}: {line.strip()!r} is not 'audio_name video_name'")
        audio, video = names
        out_path = str(out_folder / f"{audio.replace('/', '.')}_{video.replace('/', '.')}.mp4")
        job = Job(_listed(folder, video), _listed(folder, audio), out_path)
        for target in (job.out_path, job.orig_path) if save_orig else (job.out_path,):
            if target in writers:
                raise InputError(
                    f"--filelist {filelist}: lines {writers[target]} and {number} write one file, {target}; drop one, "
                    "or rename its video or sound"
                )
            writers[target] = number
        jobs.append(job)
    if not jobs:
        raise InputError(f"--filelist {filelist}: has no lines; give lines 'audio_name video_name'")
    return jobs


def _listed(folder: str, name: str) -> str:
    path = Path(folder, name)
    return str(path if path.is_file() else f"{path}.mp4")


def check_job(job: Job, save_orig: bool) -> None:
    """Inputs are media files, targets can be written, and nothing is overwritten that is not a former result.

    :param save_orig: `orig_path` is written too.
    :raises InputError: naming what is in the way.
    """
    for name, path in (("video_path", job.video_path), ("audio_path", job.audio_path)):
        try:
            check_source(path)
        except InputError as error:
            raise InputError(f"--{name} {error}") from None
    for target in (job.out_path, job.orig_path) if save_orig else (job.out_path,):
        check_target(target)
        if os.path.exists(target) and any(os.path.samefile(target, p) for p in (job.video_path, job.audio_path)):
            raise InputError(f"--out_path {target}: is one of the inputs; give another name")
    if save_orig and os.path.exists(job.orig_path) and not is_original(job.orig_path):
        raise InputError(
            f"--save_orig True would overwrite {job.orig_path}, which this version has not written; "
            "delete it, or give --save_orig False or another --out_path"
        )


def report_path(job: Job, options: Options) -> Path | None:
    """Of the job's quality report, if the options ask for one. In a list each has its own, named by its result."""
    if options.quality_report is None:
        return None
    path = Path(options.quality_report)
    return path.with_name(f"{path.stem}_{Path(job.out_path).stem}.html") if options.generate_from_filelist else path


def check_report(job: Job, options: Options) -> None:
    """:raises InputError: when the job's quality report cannot be written, or --stats would overwrite a part of it."""
    page = report_path(job, options)
    for path in (page, page.with_suffix(".json")) if page else ():
        try:
            check_writable(str(path))
        except InputError as error:
            raise InputError(f"--quality_report {options.quality_report}: {error}") from None
        if options.stats is not None and os.path.realpath(options.stats) == os.path.realpath(path):
            raise InputError(
                f"--stats {options.stats}: --quality_report {options.quality_report} writes this file; give another one"
            )


def check_files(work_dir: str | None, stats: str | None, quality_report: str | None = None) -> None:
    """:raises InputError: when what a run keeps besides its results cannot be written."""
    files = {"stats": stats, "quality_report": quality_report}
    for flag, given in files.items():
        if given is not None and os.path.isdir(given):
            raise InputError(f"--{flag} {given}: is a folder; name a file")
    of_files = ((flag, given, given and os.path.dirname(given)) for flag, given in files.items())
    folders = (("work_dir", work_dir, work_dir), *of_files)
    for flag, given, folder in folders:
        if folder is not None:
            try:
                writable_folder(folder)
            except InputError as error:
                raise InputError(f"--{flag} {given}: {error}; give another one") from None
