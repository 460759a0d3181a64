"""The table of clips × flag sets, with small stand-ins for generate.py and evaluate.py that note their calls."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from guided_diffusion.audio_util import read_audio
from guided_diffusion.video_util import VideoWriter, open_video
from scripts import ablation

# Both note their arguments. The result holds its flags, and --crf N makes psnr 30 + N; --crf 13 fails.
GENERATE = """
import json, pathlib, sys
with open(__file__ + ".calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given.get("--crf") == "13":
    sys.exit("loading\\ngenerate.py: error: crf 13 | bad luck")
result = pathlib.Path(given["--out_path"])
result.parent.mkdir(parents=True, exist_ok=True)
result.write_text(json.dumps(given))
pathlib.Path(given["--stats"]).write_text("{}")
"""
EVALUATE = """
import json, pathlib, sys
with open(__file__ + ".calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
flags = json.loads(pathlib.Path(sys.argv[1]).read_text())
size = pathlib.Path(given["--source"]).stat().st_size
psnr = 30 + float(flags.get("--crf", 0)) + size / 10
metrics = {"psnr": psnr, "small": psnr / 100000, "broken": float("nan")}
if "loses_psnr" in given["--source"] and flags.get("--crf") == "1":
    del metrics["psnr"]
content = {"metrics": metrics, "cost": {"peak MiB": 1234.5}}
content |= {"not_measured": {"lpips": "no weights", "lse": "no weights"}, "notes": ["a note"]}
pathlib.Path(given["--json"]).write_text(json.dumps(content))
"""


class Folder:
    """A config with its files, the stand-ins, and what they were called with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.out = path / "out é"
        for name, content in (("generate.py", GENERATE), ("oracle.py", GENERATE), ("evaluate.py", EVALUATE)):
            (path / name).write_text(content)
        (path / "net.pt").write_text("weights")
        (path / "my clip.mp4").write_text("video")  # 5 bytes: psnr 30.5
        (path / "loses_psnr.mp4").write_text("other video ...")  # 15 bytes: psnr 31.5
        (path / "speech.wav").write_text("sound")

    def run(self, config: str) -> int:
        (self.path / "config.toml").write_text(config, encoding="utf-8")
        return ablation.main([str(self.path / "config.toml"), "--out", str(self.out)])

    def calls(self, script: str) -> list[list[str]]:
        """The arguments of every call so far."""
        path = self.path / f"{script}.py.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def n_calls(self) -> tuple[int, int]:
        return len(self.calls("generate")), len(self.calls("evaluate"))

    def table(self) -> dict[str, Any]:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads((self.out / "table.json").read_text(), parse_constant=refuse)

    def markdown(self) -> str:
        return (self.out / "table.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    folder = Folder(tmp_path)
    monkeypatch.setattr(ablation, "MESH_WEIGHTS", tmp_path / "not downloaded")
    monkeypatch.setattr(ablation, "GENERATE", tmp_path / "generate.py")
    monkeypatch.setattr(ablation, "ORACLE", tmp_path / "oracle.py")
    monkeypatch.setattr(ablation, "EVALUATE", tmp_path / "evaluate.py")
    return folder


TOP = 'model_path = "net.pt"\nflags = ["--sampling_seed", "7"]\n'
CLIP = '[[clips]]\nname = "one"\ngroup = "cross"\nvideo = "my clip.mp4"\naudio = "speech.wav"\n'
OTHER = (
    '[[clips]]\nname = "two"\ngroup = "cross"\nvideo = "loses_psnr.mp4"\n'
    'reference = true\nflags = ["--pads", "1"]\n'
)
BASE = '[[rows]]\nname = "baseline"\nflags = []\n'
LESS = '[[rows]]\nname = "less"\nflags = ["--crf", "1"]\n'
FAILING = '[[rows]]\nname = "failing"\nflags = ["--crf", "13"]\n'


def pairs(arguments: list[str]) -> dict[str, str]:
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


# --- runs


def test_what_is_run(folder: Folder) -> None:
    """Flags in the order config, clip, row; own sound by default; the reference only where the config says so."""
    assert folder.run(TOP + CLIP + OTHER + LESS) == 0
    one, two = folder.calls("generate")
    assert two[:6] == ["--sampling_seed", "7", "--pads", "1", "--crf", "1"]
    given = pairs(one)
    assert given["--model_path"] == str(folder.path / "net.pt")
    assert given["--video_path"] == str(folder.path / "my clip.mp4")
    assert given["--audio_path"] == str(folder.path / "speech.wav")
    assert given["--save_orig"] == "False"
    assert given["--work_dir"] == str(folder.out / "work")
    assert pairs(two)["--audio_path"] == pairs(two)["--video_path"] == str(folder.path / "loses_psnr.mp4")

    measured = folder.calls("evaluate")
    assert [arguments[0] for arguments in measured] == [given["--out_path"], pairs(two)["--out_path"]]
    assert pairs(measured[0][1:])["--stats"] == given["--stats"]
    assert "--reference" not in measured[0]
    assert pairs(measured[1][1:])["--reference"] == pairs(measured[1][1:])["--source"] == pairs(two)["--video_path"]
    assert pairs(measured[1][1:])["--audio"] == pairs(two)["--audio_path"]


def test_same_command_makes_nothing_again(folder: Folder) -> None:
    config = TOP + CLIP + OTHER + BASE + LESS
    assert folder.run(config) == 0
    before = folder.table()
    assert folder.n_calls() == (4, 4)
    assert folder.run(config) == 0
    assert folder.n_calls() == (4, 4)
    assert folder.table() == before


@pytest.mark.parametrize("lost", ["result.mp4", "stats.json", "metrics.json"])
def test_what_is_lost_is_made_again(folder: Folder, lost: str) -> None:
    folder.run(TOP + CLIP + BASE)
    next(folder.out.glob(f"runs/*/{lost}")).unlink()
    assert folder.run(TOP + CLIP + BASE) == 0
    assert folder.n_calls() == ((1, 2) if lost == "metrics.json" else (2, 2))


@pytest.mark.parametrize("changed", ["net.pt", "net.json", "my clip.mp4", "speech.wav"])
def test_changed_input_is_run_again(folder: Folder, changed: str) -> None:
    folder.run(TOP + CLIP + BASE)
    (folder.path / changed).write_text("something else")
    assert folder.run(TOP + CLIP + BASE) == 0
    assert folder.n_calls() == (2, 2)


def test_changed_flags_are_run_again_alone(folder: Folder) -> None:
    folder.run(TOP + CLIP + BASE + LESS)
    assert folder.run(TOP + CLIP + BASE + LESS.replace('"1"', '"2"')) == 0
    assert folder.n_calls() == (3, 3)
    assert folder.run(TOP + CLIP + "reference = true\n" + BASE) == 0
    assert folder.n_calls() == (4, 4)


def test_rows_are_compared_with_the_first(folder: Folder) -> None:
    """With its result, unless that failed; and anew when the first row is another."""

    def before() -> list[str | None]:
        return [pairs(arguments[1:]).get("--before") for arguments in folder.calls("evaluate")]

    folder.run(TOP + CLIP + OTHER + BASE + LESS)
    one, two = (pairs(folder.calls("generate")[call])["--out_path"] for call in (0, 2))
    assert before() == [None, one, None, two]
    assert folder.run(TOP + CLIP + BASE.replace("[]", '["--pads", "2"]') + LESS) == 0
    assert folder.n_calls() == (5, 6)
    assert before()[4:] == [None, pairs(folder.calls("generate")[4])["--out_path"]]
    folder.run(TOP + CLIP + FAILING + LESS)
    assert before()[6:] == [None]


def test_failing_run_is_told_and_tried_again(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder.run(TOP + CLIP + OTHER + BASE + FAILING + LESS) == 1
    assert folder.n_calls() == (6, 4)
    assert "one, failing: failed: generate.py: error: crf 13 | bad luck\n" in capsys.readouterr().out
    assert "| psnr | 31.00 | failed | 31.50 (+1.00; 1 of 2 clips) |" in folder.markdown()
    assert "| psnr | one | 30.50 | failed | 31.50 |" in folder.markdown()
    assert r"- failed: one, failing: generate.py: error: crf 13 \| bad luck" in folder.markdown()
    errors = [run["error"] for run in folder.table()["runs"]]
    assert errors == [None, "generate.py: error: crf 13 | bad luck", None] * 2
    assert folder.run(TOP + CLIP + OTHER + BASE + FAILING + LESS) == 1
    assert folder.n_calls() == (8, 4)


def test_failing_evaluation_keeps_the_result(folder: Folder) -> None:
    (folder.path / "evaluate.py").write_text("import sys; sys.exit(3)")
    assert folder.run(TOP + CLIP + BASE) == 1
    assert folder.table()["runs"][0]["error"] == "evaluate.py: exit status 3"
    (folder.path / "evaluate.py").write_text(EVALUATE)
    assert folder.run(TOP + CLIP + BASE) == 0
    assert folder.n_calls() == (1, 1)


def test_oracle_stands_in_for_the_network(folder: Folder) -> None:
    oracle = 'sampler = "oracle"\noracle_size = 128\n'
    assert folder.run(TOP + CLIP + 'sampler = "network"\n' + OTHER + oracle + BASE + LESS) == 0
    assert folder.n_calls() == (2, 4)
    first, _ = folder.calls("oracle")
    assert first[:6] == ["--oracle_size", "128", "--sampling_seed", "7", "--pads", "1"]
    assert folder.run(TOP + OTHER + oracle + "oracle_flicker = 3\n" + BASE) == 0
    assert folder.calls("oracle")[-1][:4] == ["--oracle_size", "128", "--oracle_flicker", "3"]


def test_one_table_has_one_reader_of_openings(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.run(TOP + CLIP + BASE + LESS) == 0
    monkeypatch.setattr(ablation, "MESH_WEIGHTS", folder.path / "net.pt")
    assert folder.run(TOP + CLIP + BASE + LESS) == 0
    assert folder.n_calls() == (2, 3)


@pytest.mark.parametrize("option", ["lpips_weights", "mesh_weights"])
def test_weights_are_handed_on(option: str, folder: Folder) -> None:
    (folder.path / "network").write_text("weights")
    config = f'{option} = "network"\n' + TOP + CLIP + BASE
    assert folder.run(config) == 0
    assert pairs(folder.calls("evaluate")[0][1:])[f"--{option}"] == str(folder.path / "network")
    (folder.path / "network").write_text("others")
    assert folder.run(config) == 0
    assert folder.n_calls() == (2, 2)


# --- the part of a clip


@pytest.fixture
def spoken(folder: Folder) -> Path:
    """25 frames whose brightness grows, with a second of sound whose level grows likewise."""
    sound, path = folder.path / "ramp.wav", folder.path / "spoken.mp4"
    ramp = np.linspace(0, 0.8, 16000)
    soundfile.write(sound, ramp * np.sin(np.arange(16000)), 16000)
    with VideoWriter(str(path), source=(64, 48), fps=25, audio_path=str(sound)) as writer:
        for index in range(25):
            writer.write(np.full((48, 64, 3), 20 + 8 * index, np.uint8))
    return path


PART = '[[clips]]\nname = "end"\ngroup = "rec"\nvideo = "spoken.mp4"\npart = [0.8, 1.0]\n'


def test_part_is_cut_with_its_own_sound(folder: Folder, spoken: Path) -> None:
    assert folder.run(TOP + PART + "reference = true\n" + BASE) == 0
    given = pairs(folder.calls("generate")[0])
    frames = list(open_video(given["--video_path"]).frames())
    expected = list(open_video(str(spoken)).frames(20))
    assert len(frames) == len(expected) == 5
    assert np.abs(np.subtract(frames, expected, dtype=int)).max() <= 1
    samples, rate = read_audio(given["--audio_path"])
    whole, _ = read_audio(str(spoken))
    np.testing.assert_allclose(samples[:3200], whole[12800:16000], atol=1e-4)
    assert rate == 16000
    measured = pairs(folder.calls("evaluate")[0][1:])
    assert measured["--source"] == measured["--reference"] == given["--video_path"]


@pytest.mark.usefixtures("spoken")
def test_cuts_are_made_once(folder: Folder) -> None:
    folder.run(TOP + PART + BASE)
    files = {path: path.stat().st_mtime_ns for path in folder.out.glob("cuts/*/*")}
    assert len(files) == 2
    folder.run(TOP + PART + BASE)
    assert {path: path.stat().st_mtime_ns for path in folder.out.glob("cuts/*/*")} == files
    assert folder.n_calls() == (1, 1)
    folder.run(TOP + PART.replace("0.8", "0.6") + BASE)
    assert folder.n_calls() == (2, 2)


@pytest.mark.usefixtures("spoken")
def test_other_sound_is_not_cut(folder: Folder) -> None:
    assert folder.run(TOP + PART + 'audio = "speech.wav"\n' + BASE) == 0
    assert pairs(folder.calls("generate")[0])["--audio_path"] == str(folder.path / "speech.wav")


def test_clip_that_cannot_be_cut(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder.run(TOP + PART.replace("spoken", "my clip") + BASE) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert folder.n_calls() == (0, 0)


# --- tables


def test_means_and_changes(folder: Folder) -> None:
    """A change is a mean over the clips that both rows have a value for: 31.5 - 30.5, not 31.5 - 31."""
    folder.run(TOP + CLIP + OTHER + BASE + LESS)
    psnr = folder.table()["groups"]["cross"]["metrics"]["psnr"]
    assert psnr["baseline"] == {"mean": 31.0, "change": 0.0, "clips": {"one": 30.5, "two": 31.5}}
    assert psnr["less"] == {"mean": 31.5, "change": 1.0, "clips": {"one": 31.5}}


def test_markdown(folder: Folder) -> None:
    folder.run(TOP + CLIP + OTHER.replace("cross", "a|b") + BASE + LESS)
    lines = folder.markdown().splitlines()
    assert [line for line in lines if line.startswith("#")] == ["## cross", r"## a\|b"]
    start = lines.index("| metric | baseline | less |")
    assert lines[start : start + 7] == [
        "| metric | baseline | less |",
        "|---|---|---|",
        "| psnr | 30.50 | 31.50 (+1.00) |",
        "| small | 0.000305 | 0.000315 (+0.000010) |",
        "| broken | – | – |",
        "| peak MiB | 1234 | 1234 (+0) |",
        "| lpips | – | – |",
    ]
    assert "| psnr | one | 30.50 | 31.50 |" in lines
    assert "| psnr | two | 31.50 | – |" in lines
    assert lines.count("- not measured: lpips, lse: no weights") == 2
    assert "- one, baseline; one, less: a note" in lines


def test_a_remark_about_many_runs_says_how_many(folder: Folder) -> None:
    folder.run(TOP + CLIP + OTHER + BASE + LESS)
    assert "- 4 of 4 runs: a note" in folder.markdown().splitlines()


@pytest.mark.parametrize(
    ("largest", "decimals"), [(0, 3), (0.9412, 4), (9.99, 3), (31.2, 2), (100, 1), (12345, 0), (1e-9, 6)]
)
def test_sensible_digits(largest: float, decimals: int) -> None:
    cells = {"a": {"clips": {"x": -largest}}, "b": {"clips": {"x": largest / 3}}, "c": {"clips": {}}}
    assert ablation._decimals(cells) == decimals


def test_no_minus_before_zero() -> None:
    assert ablation._number(-0.0001, 2, "+") == "+0.00"


# --- bad configs


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(config: str) -> str:
        assert old in config
        return config.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: "flags = [", "is not TOML"),
        (lambda config: "fps = 3\n" + config, "unknown key 'fps'; allowed are model_path, flags, clips, rows, lpips"),
        (replaced('flags = ["--sampling_seed", "7"]', ""), "flags is missing"),
        (replaced('"--sampling_seed", "7"', '"--sampling_seed", 7'), "give a list of texts"),
        (replaced("net.pt", "no.pt"), "model_path 'no.pt': no such file"),
        (lambda config: config[: config.index("[[clips]]")] + BASE, "clips is missing"),
        (lambda config: "rows = []\n" + config[: config.index("[[rows]]")], "rows = []"),
        (replaced('name = "two"', 'name = "one"'), "two clips have the name 'one'"),
        (lambda config: config + BASE, "two rows have the name 'baseline'"),
        (replaced('name = "one"', 'name = " "'), "clip 1: name = ' '; give a text"),
        (replaced("loses_psnr.mp4", "gone.mp4"), "clip 2: video 'gone.mp4': no such file"),
        (replaced("speech.wav", "gone.wav"), "clip 1: audio 'gone.wav': no such file"),
        (replaced("reference = true", "reference = 1"), "clip 2: reference = 1; give true or false"),
        (replaced("reference = true", "part = [0.5, 0.5]"), "clip 2: part = [0.5, 0.5]"),
        (replaced("reference = true", "part = [0, nan]"), "clip 2: part"),
        (replaced("reference = true", "refrence = true"), "clip 2: unknown key 'refrence'"),
        (replaced("reference = true", "oracle_size = 64"), "clip 2: oracle_size is the oracle's"),
        (replaced("reference = true", 'sampler = "oracle"\noracle_size = 64'), "clip 2: the oracle shows"),
        (replaced("reference = true", 'reference = true\nsampler = "oracle"'), "clip 2: oracle_size is missing"),
        (replaced("reference = true", 'sampler = "orakel"'), "clip 2: sampler = 'orakel'; give network or oracle"),
        (replaced("reference = true", "oracle_flicker = -1"), "clip 2: oracle_flicker = -1; give a whole number"),
        (lambda config: 'lpips_weights = "no.pth"\n' + config, "lpips_weights 'no.pth': no such file"),
        (lambda config: 'mesh_weights = "no.tflite"\n' + config, "mesh_weights 'no.tflite': no such file"),
        (replaced('name = "baseline"\n', ""), "row 1: name is missing"),
        (lambda config: config + '[[rows]]\nname = "x"\nflags = ["--out_path=a.mp4"]', "is set by ablation.py itself"),
    ],
)
def test_bad_config(
    folder: Folder, capsys: pytest.CaptureFixture[str], change: Callable[[str], str], said: str
) -> None:
    assert folder.run(change(TOP + CLIP + OTHER + BASE)) == 2
    message = capsys.readouterr().err
    assert message.startswith("ablation.py: error: ")
    assert said in message
    assert message.count("\n") == 1
    assert folder.n_calls() == (0, 0)


def test_unreadable_config_or_out(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main([str(folder.path / "none.toml")]) == 2
    (folder.path / "latin.toml").write_bytes(b"# \xe9")
    assert ablation.main([str(folder.path / "latin.toml")]) == 2
    folder.out.write_text("a file")
    assert folder.run(TOP + CLIP + BASE) == 2
    none, latin, out = capsys.readouterr().err.splitlines()
    assert "No such file" in none
    assert "not a UTF-8 text" in latin
    assert "name a folder" in out


def test_baseline_config_is_valid() -> None:
    path = ablation.ROOT / "docs" / "baseline.toml"
    if not (ablation.ROOT.parent / "shared").is_dir():
        pytest.skip("needs ../shared")
    config = ablation.read_config(path)
    kinds = [(clip.group, clip.reference) for clip in config.clips]
    assert kinds == [("reconstruction", True)] * 4 + [("cross", False)] * 4


def test_super_resolution_config_is_valid() -> None:
    if not (ablation.ROOT.parent / "shared").is_dir():
        pytest.skip("needs ../shared")
    config = ablation.read_config(ablation.ROOT / "docs" / "super_resolution.toml")
    assert config.weights.keys() == {"lpips_weights"}
    sizes = [clip.oracle[1] if clip.oracle else "network" for clip in config.clips]
    assert sizes == ["128"] * 4 + ["64"] * 4 + ["network"] * 4
