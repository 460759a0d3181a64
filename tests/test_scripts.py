"""The shell scripts, with a stand-in for the interpreter that notes what it is asked to run."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"

STAND_IN = """#!/bin/sh
case $1 in
  -c) case $2 in *sys.prefix*) echo "$VIRTUAL_ENV" ;; esac ;;
  -m) [ "$2" = pip ] && echo installed >> "$VIRTUAL_ENV/pip" || printf '%s\\n' "$@" > "$VIRTUAL_ENV/asked" ;;
  *) printf '%s\\n' "$@" > "$VIRTUAL_ENV/asked"; printf '%s\\n' "$@" > "$VIRTUAL_ENV/asked-${1##*/}" ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return {"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(tmp_path)}


def asked(script: str, environment: dict[str, str], *arguments: str, **variables: str) -> list[str]:
    command = ["bash", str(SCRIPTS / script), *arguments]
    subprocess.run(command, check=True, capture_output=True, env={**environment, **variables})
    return (Path(environment["VIRTUAL_ENV"]) / "asked").read_text().splitlines()


def test_arguments_are_handed_on_when_the_set_up_installs_and_when_not(environment: dict[str, str]) -> None:
    """The run that installed handed pip's arguments on instead of the caller's."""
    for _ in range(2):
        said = asked("inference_single_video.sh", environment, "--crf", "a b", video_path="my video.mp4")
        assert said[0].endswith("generate.py")
        assert said[-2:] == ["--crf", "a b"]
        assert said[said.index("--video_path") + 1] == "my video.mp4"
    assert (Path(environment["VIRTUAL_ENV"]) / "pip").read_text() == "installed\n"


def test_modes_and_processes_of_a_list(environment: dict[str, str]) -> None:
    cross = asked("inference.sh", environment, real_video_root="clips", filelist="list.txt")
    assert cross[cross.index("--sampling_ref_type") + 1] == "gt"
    assert cross[cross.index("--test_video_dir") + 1] == "clips"
    both = asked("inference.sh", environment, sample_mode="reconstruction", NUM_GPUS="2")
    assert both[both.index("--sampling_input_type") + 1] == "first_frame"
    assert both[:2] == ["-m", "torch.distributed.run"]
    assert both[both.index("--nproc_per_node") + 1] == "2"


@pytest.mark.parametrize("script", ["inference.sh", "inference_single_video.sh"])
def test_the_callers_number_of_steps_wins(environment: dict[str, str], script: str) -> None:
    """A preset or --sampling_steps beside --timestep_respacing is an error; of two equal flags the last counts."""
    steps = "--timestep_respacing"
    plain = asked(script, environment)
    assert plain[plain.index(steps) + 1] == "ddim25"
    for own in ("--quality_preset fast", "--quality_preset=fast", "--sampling_steps 9", "--sampling_steps=9",
                "--sampler turbo", "--sampler=turbo"):  # fmt: skip
        preset = own.split()
        said = asked(script, environment, *preset)
        assert steps not in said
        assert said[-len(preset) :] == preset
    own = asked(script, environment, steps, "ddim7")
    assert own[len(own) - own[::-1].index(steps)] == "ddim7"


def test_the_demo_runs_on_what_the_repository_brings(environment: dict[str, str]) -> None:
    root = SCRIPTS.parent
    out = environment["VIRTUAL_ENV"]
    said = asked("demo.sh", environment, out=out)
    assert said[0].endswith("compare.py")
    assert said[-1] == f"{out}/demo_side_by_side.mp4"
    for path in ("samples/astronaut.mp4", "samples/speech.wav", "checkpoints/demo.safetensors"):
        assert (root / path).is_file()
        assert f"$root/{path}" in (SCRIPTS / "demo.sh").read_text()


@pytest.mark.parametrize(
    "own",
    [[], ["--quality_preset=fast"], ["--sampler", "ddim"], ["--sampling_steps", "4"], ["--timestep_respacing=ddim9"]],
)
def test_the_demo_takes_turbo_unless_the_caller_says_how_many_steps(
    own: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    asked("demo.sh", environment, *own)
    said = (tmp_path / "asked-generate.py").read_text().splitlines()
    assert ("turbo" in said) == (not own)
    assert said[len(said) - len(own) :] == own


def test_a_result_lasts_as_long_as_its_sound_unless_the_caller_says_no(environment: dict[str, str]) -> None:
    said = asked("inference_single_video.sh", environment, "--pad_audio", "False")
    values = [said[k + 1] for k, flag in enumerate(said) if flag == "--pad_audio"]
    assert values == ["True", "False"]
    assert "--pad_audio True" in (SCRIPTS / "demo.sh").read_text()


@pytest.mark.parametrize("variables", [{"sample_mode": "other"}, {"NUM_GPUS": "0"}, {"NUM_GPUS": "two"}])
def test_bad_variables(environment: dict[str, str], variables: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS / "inference.sh")], check=False, capture_output=True, text=True,
        env={**environment, **variables},
    )  # fmt: skip
    assert done.returncode == 2
    assert next(iter(variables)) in done.stderr
