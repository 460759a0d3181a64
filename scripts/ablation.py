"""One table of clips × flag sets: `python scripts/ablation.py CONFIG.toml [--out DIR]`; docs/baseline.toml is a CONFIG.

Runs generate.py for every clip and row, evaluates each result with scripts/evaluate.py, and writes DIR/table.md and
DIR/table.json: per group of clips each row's mean, and its change against the first row. The same command continues
where it stopped; a result is made again when its inputs, the checkpoint or the flags have changed, not when the code
has: give another DIR then. Tracks and samples that rows share (DIR/work) are in the first one's times only.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from _path import ROOT
from guided_diffusion.audio_util import read_audio
from guided_diffusion.errors import InputError
from guided_diffusion.store import content_key, file_digest, replace_when_complete
from guided_diffusion.video_util import VideoWriter, count_frames, open_video
from openings import MESH_WEIGHTS

GENERATE = ROOT / "generate.py"
ORACLE = ROOT / "scripts" / "oracle.py"
EVALUATE = ROOT / "scripts" / "evaluate.py"
OWN_FLAGS = ("--model_path", "--video_path", "--audio_path", "--out_path", "--save_orig", "--work_dir", "--stats")
WEIGHTS = ("lpips_weights", "mesh_weights")
CUT_FPS = 25
DIGITS = 4  # significant ones of a line's largest value
MAX_DECIMALS = 6
NO_VALUE = "–"
MOST_NAMED = 3  # runs that one remark is about


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG.toml", help="checkpoint, flags, clips and rows")
    parser.add_argument("--out", metavar="DIR", help="folder for results and tables; default ablation/<CONFIG's name>")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out or Path("ablation", Path(arguments.config).stem)).resolve()
    try:
        config = read_config(Path(arguments.config))
        make_folder(out)
        runs = run_all(config, out)
    except InputError as error:
        print(f"ablation.py: error: {error}", file=sys.stderr)
        return 2
    table = summarize(config, runs)
    write_text(out / "table.json", json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False))
    write_text(out / "table.md", to_markdown(table))
    print(out / "table.md")
    return 1 if any(run.error for run in runs) else 0


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {str(path)!r}: {error.strerror}; name a folder that you may write to") from None


def write_text(path: Path, text: str) -> None:
    with replace_when_complete(path) as part:
        part.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ config


@dataclass(frozen=True)
class Clip:
    """A video and the speech for it. Rows are averaged over the clips of a group.

    audio: None takes the video's own sound. part: the share [start, end) of the video that is used, and of its own
    sound; another `audio` is used from its beginning. reference: the video is what the result should look like.
    oracle: flags of scripts/oracle.py, which then stands in for generate.py; none: the network is used.
    """

    name: str
    group: str
    video: Path
    audio: Path | None
    part: tuple[float, float] | None
    flags: list[str]
    reference: bool
    oracle: list[str]


@dataclass(frozen=True)
class Row:
    name: str
    flags: list[str]


@dataclass(frozen=True)
class Config:
    """`flags` hold for all runs; a clip's come after them, then a row's: the last of equal flags counts.

    weights: for scripts/evaluate.py, by its option, one of WEIGHTS; what is not there it has its default of.
    """

    model_path: Path
    weights: dict[str, Path]
    flags: list[str]
    clips: list[Clip]
    rows: list[Row]


class Kind(NamedTuple):
    """What a value in the config may be."""

    allowed: str
    accepts: Callable[[Any], bool]


def _are_flags(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)


def _is_part(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(item) in (int, float) for item in value)
    return numbers and 0 <= value[0] < value[1] <= 1


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


TEXT = Kind("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
FLAGS = Kind("a list of texts", _are_flags)
PART = Kind("two shares [start, end], 0 <= start < end <= 1", _is_part)
SAMPLER = Kind("network or oracle", lambda value: value in ("network", "oracle"))
SIZE = Kind("a size in pixels, such as 128", lambda value: type(value) is int and value > 0)
SEED = Kind("a whole number from 0 up", lambda value: type(value) is int and value >= 0)
TABLES = Kind("one or more tables, each under [[clips]] or [[rows]]", _are_tables)


def read_config(path: Path) -> Config:
    """Read a TOML file; docs/baseline.toml shows all its keys. Paths in it are relative to its folder.

    :raises InputError: when it cannot be read, for keys and values that are not allowed, and for files not there.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a TOML file such as docs/baseline.toml") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a UTF-8 text; name a TOML file such as docs/baseline.toml") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not TOML: {error}") from None
    folder = path.resolve().parent
    where = str(path)
    required = {"model_path": TEXT, "flags": FLAGS, "clips": TABLES, "rows": TABLES}
    check_keys(data, where, required, dict.fromkeys(WEIGHTS, TEXT))
    config = Config(
        find_file(folder, data["model_path"], f"{where}: model_path"),
        {name: find_file(folder, data[name], f"{where}: {name}") for name in WEIGHTS if name in data},
        data["flags"],
        [_read_clip(table, folder, f"{where}: clip {number}") for number, table in enumerate(data["clips"], 1)],
        [_read_row(table, f"{where}: row {number}") for number, table in enumerate(data["rows"], 1)],
    )
    for kind, names in (("clips", [c.name for c in config.clips]), ("rows", [r.name for r in config.rows])):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"{where}: two {kind} have the name {twice!r}; give each its own")
    flags = [config.flags, *(clip.flags for clip in config.clips), *(row.flags for row in config.rows)]
    for flag in chain.from_iterable(flags):
        if flag.split("=")[0] in OWN_FLAGS:
            raise InputError(f"{where}: {flag!r} among the flags is set by ablation.py itself; drop it")
    return config


def _read_clip(table: dict[str, Any], folder: Path, where: str) -> Clip:
    required = {"name": TEXT, "group": TEXT, "video": TEXT}
    optional = {"audio": TEXT, "part": PART, "flags": FLAGS, "reference": TRUTH}
    check_keys(table, where, required, {**optional, "sampler": SAMPLER, "oracle_size": SIZE, "oracle_flicker": SEED})
    return Clip(
        table["name"],
        table["group"],
        find_file(folder, table["video"], f"{where}: video"),
        find_file(folder, table["audio"], f"{where}: audio") if "audio" in table else None,
        tuple(table["part"]) if "part" in table else None,
        table.get("flags", []),
        table.get("reference", False),
        _read_oracle(table, where),
    )


def _read_oracle(table: Mapping[str, Any], where: str) -> list[str]:
    options = [(name, table[name]) for name in ("oracle_size", "oracle_flicker") if name in table]
    if table.get("sampler") != "oracle":
        if options:
            raise InputError(f"{where}: {options[0][0]} is the oracle's; give sampler = \"oracle\" too, or drop it")
        return []
    if not table.get("reference"):
        raise InputError(f"{where}: the oracle shows the video's own mouth; give reference = true")
    if "oracle_size" not in table:
        raise InputError(f"{where}: oracle_size is missing; give {SIZE.allowed}")
    return [text for name, value in options for text in (f"--{name}", str(value))]


def _read_row(table: dict[str, Any], where: str) -> Row:
    check_keys(table, where, {"name": TEXT, "flags": FLAGS}, {})
    return Row(table["name"], table["flags"])


def check_keys(
    table: Mapping[str, Any], where: str, required: Mapping[str, Kind], optional: Mapping[str, Kind]
) -> None:
    """:raises InputError: for the first key that is unknown, missing, or has a value of another kind."""
    kinds = {**required, **optional}
    for key, value in table.items():
        if key not in kinds:
            raise InputError(f"{where}: unknown key {key!r}; allowed are {', '.join(kinds)}")
        if not kinds[key].accepts(value):
            raise InputError(f"{where}: {key} = {value!r}; give {kinds[key].allowed}")
    for key in required:
        if key not in table:
            raise InputError(f"{where}: {key} is missing; give {required[key].allowed}")


def find_file(folder: Path, name: str, where: str) -> Path:
    path = os.path.abspath(folder / name)
    if not os.path.isfile(path):
        raise InputError(f"{where} {name!r}: no such file (looked for {path!r})")
    return Path(path)


# -------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """A clip made with a row's flags.

    metrics: evaluate.py's, then the cost; None where a value is not finite. error: why it failed, in one line.
    """

    clip: str
    group: str
    row: str
    result: str
    error: str | None
    metrics: dict[str, float | None]
    not_measured: dict[str, str]
    notes: list[str]


class RunFailed(Exception):
    """A subprocess failed; the message is its last line on stderr."""


def run_all(config: Config, out: Path) -> list[Run]:
    """Every clip with every row, in this order. Failed runs are reported, and tried again by the next call.

    :raises InputError: before the first run, when a clip cannot be cut to its part.
    """
    inputs = [cut(clip, out / "cuts") for clip in config.clips]
    config_path = config.model_path.with_suffix(".json")
    files = [config.model_path, config_path, *config.weights.values()]
    model_digests = [file_digest(str(path)) for path in files if path.is_file()]
    runs: list[Run] = []
    reads_mesh = "mesh_weights" in config.weights or MESH_WEIGHTS.is_file()
    for clip, (video, audio) in zip(config.clips, inputs, strict=True):
        digests = [*model_digests, file_digest(str(video)), file_digest(str(audio))]
        first: Run | None = None
        for row in config.rows:
            flags = [*clip.oracle, *config.flags, *clip.flags, *row.flags]
            key = content_key({"inputs": digests, "flags": flags, "reference": clip.reference})
            generate = [
                *flags, "--model_path", str(config.model_path), "--video_path", str(video), "--audio_path", str(audio),
                "--save_orig", "False", "--work_dir", str(out / "work"),
            ]  # fmt: skip
            evaluate = ["--source", str(video), "--audio", str(audio)]
            evaluate += ["--reference", str(video)] if clip.reference else []
            evaluate += [text for name, path in config.weights.items() for text in (f"--{name}", str(path))]
            before = None if first is None or first.error else Path(first.result)
            runs.append(run_one(clip, row, out / "runs" / key, generate, evaluate, before, reads_mesh))
            first = first or runs[-1]
            outcome = f"failed: {runs[-1].error}" if runs[-1].error else runs[-1].result
            print(f"{len(runs)}/{len(config.clips) * len(config.rows)} {clip.name}, {row.name}: {outcome}", flush=True)
    return runs


def run_one(
    clip: Clip, row: Row, folder: Path, generate: Sequence[str], evaluate: Sequence[str], before: Path | None,
    reads_mesh: bool,
) -> Run:
    """Make what is not in `folder` yet: the result and its stats by generate.py, then the metrics by evaluate.py.

    :param before: the first row's result, which the mouth's movement is compared with.
    :param reads_mesh: evaluate.py reads openings by the face mesh too: one table does not mix readers.
    """
    result, stats = folder / "result.mp4", folder / "stats.json"
    metrics = folder / (f"metrics-{before.parent.name}{'-mesh' * reads_mesh}.json" if before else "metrics.json")
    content: dict[str, Any] = {"metrics": {}, "cost": {}, "not_measured": {}, "notes": []}
    error = None
    try:
        if not (result.is_file() and stats.is_file()):
            for compared_with_another in folder.glob("metrics*.json"):
                compared_with_another.unlink()
            execute(ORACLE if clip.oracle else GENERATE, [*generate, "--out_path", str(result), "--stats", str(stats)])
        if not metrics.is_file():
            compared = ["--before", str(before)] if before else []
            execute(EVALUATE, [str(result), *evaluate, *compared, "--stats", str(stats), "--json", str(metrics)])
        content = json.loads(metrics.read_text(encoding="utf-8"))
    except RunFailed as failure:
        error = str(failure)
    measured = {**content["metrics"], **content["cost"]}
    values = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    return Run(
        clip.name, clip.group, row.name, str(result), error, values, content["not_measured"], content["notes"]
    )


def execute(script: Path, arguments: Sequence[str]) -> None:
    """:raises RunFailed: when the script's exit status is not 0."""
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RunFailed(lines[-1] if lines else f"{script.name}: exit status {done.returncode}")


def cut(clip: Clip, folder: Path) -> tuple[Path, Path]:
    """The clip's video and audio for generate.py; a part is cut into `folder` first, once, without loss but for chroma.

    :raises InputError: when the video or its sound cannot be read, or the part has no frame.
    """
    if clip.part is None:
        return clip.video, clip.audio or clip.video
    key = content_key({"video": file_digest(str(clip.video)), "part": clip.part, "fps": CUT_FPS})
    video_path, audio_path = folder / key / "cut.mp4", folder / key / "cut.wav"
    source = open_video(str(clip.video), CUT_FPS)
    own_audio = clip.audio is None
    if not video_path.is_file() or (own_audio and not audio_path.is_file()):
        n_frames = count_frames(source)
        start, stop = (round(share * n_frames) for share in clip.part)
        if own_audio:
            samples, rate = read_audio(str(clip.video))
            span = samples[round(start / CUT_FPS * rate) : round(stop / CUT_FPS * rate)]
            with replace_when_complete(audio_path) as part:
                soundfile.write(part, span, rate, format="WAV")
        with VideoWriter(str(video_path), source=source, fps=CUT_FPS, crf=0) as writer:
            for frame in source.frames(start, stop):
                writer.write(frame)
    return video_path, clip.audio or audio_path


# ------------------------------------------------------------------------------------------------------------- table


def summarize(config: Config, runs: Sequence[Run]) -> dict[str, Any]:
    """All that is known, as table.json holds it; the numbers by groups[group]["metrics"][metric][row]."""
    groups = {}
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        names = dict.fromkeys(name for run in members for name in (*run.metrics, *run.not_measured))
        groups[group] = {
            "clips": list(dict.fromkeys(run.clip for run in members)),
            "metrics": {name: _by_row(name, members, config.rows) for name in names},
        }
    return {
        "model_path": str(config.model_path),
        "flags": config.flags,
        "rows": [asdict(row) for row in config.rows],
        "groups": groups,
        "runs": [asdict(run) for run in runs],
    }


def _by_row(metric: str, runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Per row: values by clip, their mean, and the mean change over the clips for which the first row has one too."""
    values = {
        row.name: {run.clip: value for run in runs if run.row == row.name
                   if (value := run.metrics.get(metric)) is not None}
        for row in rows
    }  # fmt: skip
    baseline = values[rows[0].name]
    return {
        row.name: {
            "mean": _mean(values[row.name].values()),
            "change": _mean(value - baseline[clip] for clip, value in values[row.name].items() if clip in baseline),
            "clips": values[row.name],
        }
        for row in rows
    }


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def to_markdown(table: Mapping[str, Any]) -> str:
    """Per group: means with changes, a column per row; then the values by clip; then what is missing, and why."""
    rows = [row["name"] for row in table["rows"]]
    parts = [f"Flags of all runs: `{' '.join(table['flags'])}`"]
    parts += [f"- {_plain(row['name'])}: `{' '.join(row['flags']) or 'no further flags'}`" for row in table["rows"]]
    for name, group in table["groups"].items():
        runs = [run for run in table["runs"] if run["group"] == name]
        failed = {(run["clip"], run["row"]): run["error"] for run in runs if run["error"]}
        n_clips = len(group["clips"])
        lost = {row for row in rows if all((clip, row) in failed for clip in group["clips"])}
        means = [
            [metric, *(
                "failed" if row in lost else _mean_cell(by_row[row], row != rows[0], n_clips, _decimals(by_row))
                for row in rows
            )]
            for metric, by_row in group["metrics"].items()
        ]  # fmt: skip
        values = [
            [metric, clip, *(
                "failed" if (clip, row) in failed else _number(by_row[row]["clips"].get(clip), _decimals(by_row))
                for row in rows
            )]
            for metric, by_row in group["metrics"].items()
            for clip in group["clips"]
        ]  # fmt: skip
        parts += ["", f"## {_plain(name)}", "", *_markdown_table(["metric", *rows], means)]
        parts += ["", f"Means over {n_clips} clip(s); in brackets the change against {_plain(rows[0])}.", ""]
        parts += _markdown_table(["metric", "clip", *rows], values)
        remarks = [f"failed: {clip}, {row}: {error}" for (clip, row), error in failed.items()]
        remarks += _not_measured(runs)
        remarks += _notes(runs)
        parts += ["", *(f"- {_plain(remark)}" for remark in remarks)] if remarks else []
    return "\n".join(parts) + "\n"


def _not_measured(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    metrics: dict[str, dict[str, None]] = {}
    for run in runs:
        for metric, reason in run["not_measured"].items():
            metrics.setdefault(reason, {})[metric] = None
    return [f"not measured: {', '.join(names)}: {reason}" for reason, names in metrics.items()]


def _notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What evaluate.py remarks, each once, with the runs that it is about or, of many, their number."""
    about: dict[str, list[str]] = {}
    for run in runs:
        for note in run["notes"]:
            about.setdefault(note, []).append(f"{run['clip']}, {run['row']}")
    return [
        f"{'; '.join(names) if len(names) <= MOST_NAMED else f'{len(names)} of {len(runs)} runs'}: {note}"
        for note, names in about.items()
    ]


def _mean_cell(cell: Mapping[str, Any], with_change: bool, n_clips: int, decimals: int) -> str:
    if cell["mean"] is None:
        return NO_VALUE
    remarks = [_number(cell["change"], decimals, "+")] if with_change else []
    if len(cell["clips"]) < n_clips:
        remarks.append(f"{len(cell['clips'])} of {n_clips} clips")
    return _number(cell["mean"], decimals) + (f" ({'; '.join(remarks)})" if remarks else "")


def _number(value: float | None, decimals: int, sign: str = "-") -> str:
    # adding 0.0 turns the -0.0 of small changes into 0.0
    return NO_VALUE if value is None else f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def _decimals(by_row: Mapping[str, Mapping[str, Any]]) -> int:
    """Digits after the point that show DIGITS significant ones of the largest value on a line."""
    largest = max((abs(value) for cell in by_row.values() for value in cell["clips"].values()), default=0)
    magnitude = math.floor(math.log10(largest)) if largest > 0 else 0
    return min(max(DIGITS - 1 - magnitude, 0), MAX_DECIMALS)


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    cells = [[_plain(text) for text in line] for line in (header, *lines)]
    written = [f"| {' | '.join(line)} |" for line in cells]
    return [written[0], "|---" * len(header) + "|", *written[1:]]


def _plain(text: str) -> str:
    """One line that no table cell ends in."""
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
