"""The quality report: what is kept while a run goes, and a page that shows it and needs nothing from outside."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import write_video

from generate import main
from guided_diffusion import quality_report
from guided_diffusion.faults import Fault
from guided_diffusion.jobs import Job
from guided_diffusion.options import Options
from guided_diffusion.quality_report import (
    LOOK_EVERY,
    MOST_CLOSEUPS,
    MOST_WORST,
    NEIGHBOURS,
    QualityReport,
    changed,
    open_report,
    sync_words,
    worst_of,
)
from guided_diffusion.report_page import POINTS, Assessment, Picture, _line, page
from guided_diffusion.streams import Face, Item
from guided_diffusion.video_util import VideoSource, open_video

NASTY = '"><script>alert(1)</script>&amp;.mp4'
VOID = {"meta", "img", "br", "line", "rect", "path"}


class Parsed(HTMLParser):
    """A page's tags, attributes and words; every tag must be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.values: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "poster")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def fault(kind: str = "blur", first: int = 30, last: int = 31, score: float = 2.5) -> Fault:
    return Fault(kind=kind, first=first, last=last, worst=first, seconds=first / 25, score=score, helps="--a_flag 2")


def found(**changes: object) -> Assessment:
    n = 100
    whole = Assessment(
        slate={"result": "folder/shot.mp4", "picture": "a.mp4"}, fps=25.0, n_frames=n, n_faces=n, faults=[],
        scores={"blur": np.linspace(0, 0.8, n)}, openings=np.abs(np.sin(np.arange(n) / 5)), envelope=np.ones(n),
        sync="r = 0.5", worst=[], closeups=[], sound={"verdict": ["good: nothing here should do the lips much harm"]},
        settings={"--crf": "20"}, cost={"sample": 12.3}, seconds=9.0, memory={"rss": 900.0},
        versions={"python": "3.11"},
    )  # fmt: skip
    return replace(whole, **changes)


def test_words_from_outside_do_not_become_markup() -> None:
    """A file's name in the page ran as a script."""
    nasty = found(
        slate={"result": NASTY, NASTY: NASTY}, settings={NASTY: NASTY}, versions={NASTY: NASTY}, sync=NASTY,
        sound={"verdict": [NASTY], "channels": NASTY, NASTY: NASTY}, cost={NASTY: 1.0},
        faults=[replace(fault(), helps=NASTY)],
    )  # fmt: skip
    parsed = Parsed(page(nasty))
    assert "script" not in parsed.tags
    assert NASTY.replace("/", "") not in parsed.words
    assert parsed.words.count(NASTY) >= 10


def test_the_page_needs_nothing_from_outside() -> None:
    picture = Picture(30, b"\xff\xd8jpeg", 2.5, "blur")
    text = page(found(faults=[fault()], worst=[picture], closeups=[replace(picture, kind="")]))
    parsed = Parsed(text)
    assert parsed.values == ["data:image/jpeg;base64,/9hqcGVn"] * 2
    assert "url(" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    for words in (
        "00:00:01:05", "blur, 2.5", "<b>blur</b> 2.5", "--a_flag 2", "r = 0.5", "--crf", "12.3", "900 MiB", "prefers",
    ):  # fmt: skip
        assert words in text
    assert parsed.tags.count("svg") == 2


@pytest.mark.parametrize(
    ("changes", "grade", "words"),
    [
        ({}, "good", "no faults were found in 100 frames"),
        ({"faults": [fault()]}, "look", "2 of 100 frames (2.0 %) have faults, at most 2.5 times the threshold: blur"),
        ({"faults": [fault(), fault("noise"), fault("seam", 40, 69)]}, "bad", "32 of 100 frames (32.0 %)"),
        ({"n_faces": 90}, "look", "10 of 100 frames show the source as it is"),
        ({"n_faces": 0}, "bad", "100 of 100 frames show the source"),
        ({"sound": {"verdict": ["quiet (-40 LUFS)"]}}, "look", "the sound: quiet"),
        ({"n_faces": 10, "faults": [fault("unchanged", 0, 7)]}, "bad", "unchanged"),
        ({"sound": {"not_measured": "no such file"}}, "good", "no faults"),
    ],
)
def test_the_grade_says_why(changes: dict, grade: str, words: str) -> None:
    assessed = found(**changes)
    assert assessed.grade == grade
    assert words in "; ".join(assessed.reasons)
    Parsed(page(assessed))


def test_the_json_file_has_no_number_that_json_lacks() -> None:
    """A NaN is written as such by json, and read by nobody else."""
    openings = np.full(100, np.nan)
    openings[3] = 0.25
    whole = found(openings=openings, faults=[fault()], worst=[Picture(1, b"x")], closeups=[Picture(1, b"x")])
    read = json.loads(json.dumps(whole.as_json(), allow_nan=False))
    assert read["openings"][2:5] == [None, 0.25, None]
    assert (read["grade"], read["n_faulty"]) == ("look", 2)
    assert read["faults"][0]["timecode"] == "00:00:01:05"
    assert "worst" not in read


def test_a_line_has_gaps_and_keeps_what_sticks_out() -> None:
    """One bad frame of thousands vanished where many frames share a point."""
    values = np.zeros(10 * POINTS)
    values[4321] = 1.0
    values[100:300] = np.nan
    drawn = _line(values, "c")
    assert drawn.count("M") == 2
    assert " 0.0" in drawn


def test_a_video_of_one_frame_and_one_without_frames_have_pages() -> None:
    one = found(n_frames=1, n_faces=1, scores={"blur": np.zeros(1)}, openings=np.full(1, np.nan), envelope=None)
    Parsed(page(one))
    Parsed(page(found(n_frames=1, scores={}, openings=np.zeros(0), envelope=np.zeros(0))))


# ------------------------------------------------------------------------------------------------- as the run goes


class Numbers:
    """A meter that knows the scores of all frames beforehand."""

    def __init__(self, scores: dict[str, np.ndarray]) -> None:
        self.known = scores
        self.asked: list[int | None] = []
        self.n = 0

    def update(self, item: Item) -> None:  # noqa: ARG002
        self.n += 1

    def scores(self, last: int | None = None) -> dict[str, np.ndarray]:
        self.asked.append(last)
        return {kind: values[max(0, self.n - (last or self.n)) : self.n] for kind, values in self.known.items()}

    def faults(self) -> list[Fault]:
        return []

    @property
    def openings(self) -> np.ndarray:
        return np.zeros(self.n)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> VideoSource:
    return open_video(str(write_video(tmp_path_factory.mktemp("source") / "v.mp4", np.zeros((2, 32, 32, 3), np.uint8))))


def items(n: int) -> list[Item]:
    frame = np.zeros((32, 32, 3), np.uint8)
    picture = frame.copy()
    picture[16:24, 8:24] = 9
    return [Item(frame, Face(i, (8, 24, 8, 24)), np.zeros((8, 8, 3), np.float32), 8, picture=picture) for i in range(n)]


def fed(tmp_path: Path, source: VideoSource, speech: Path, scores: dict[str, np.ndarray]) -> QualityReport:
    n = len(next(iter(scores.values())))
    job = Job("v.mp4", str(speech), "out.mp4")
    options = Options(video_path="v", audio_path="a", model_path="m", quality_report="r.html")
    report = QualityReport(tmp_path / "r.html", job, options, source, n, lambda _envelope: Numbers(scores))
    most = 0
    for item in items(n):
        report.update(item)
        most = max(most, len(report._recent) + len(report._worst) + len(report._closeups))
    assert most <= LOOK_EVERY + NEIGHBOURS + MOST_WORST + MOST_CLOSEUPS
    return report


SAID = {"faces": "all", "sound": {"verdict": ["good"]}, "ms_per_frame": {"sample": 1.0}, "seconds": 2.0}


def test_few_pictures_are_kept_of_many_bad_frames(tmp_path: Path, source: VideoSource, speech: Path) -> None:
    """Blurred all along, and noisy once, early: the noisy frame must be among the pictures."""
    n = 500
    scores = {"blur": np.full(n, 3.0), "noise": np.zeros(n)}
    scores["noise"][20], scores["blur"][20] = 2.0, 0.0
    report = fed(tmp_path, source, speech, scores)
    report.write(SAID, "0123")
    assert len(report._worst) == MOST_WORST
    assert [picture.frame for picture in report._worst if picture.kind == "noise"] == [20]
    frames = sorted(picture.frame for picture in report._worst if picture.kind == "blur")
    assert min(np.diff(frames)) > NEIGHBOURS
    assert [picture.frame for picture in report._closeups] == [0, 84, 167, 250, 334, 417]
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["slate"]["touched"].startswith("up to 12.5 % of a picture, no pixels outside")
    assert "0123" in (tmp_path / "r.html").read_text()


def test_a_good_result_has_no_flagged_frames(tmp_path: Path, source: VideoSource, speech: Path) -> None:
    report = fed(tmp_path, source, speech, {"blur": np.full(100, 0.9)})
    report.write(SAID, "0123")
    assert "<img" not in flagged_frames(tmp_path)


def test_a_frame_that_becomes_a_fault_by_what_comes_after_has_its_picture(
    tmp_path: Path, source: VideoSource, speech: Path
) -> None:
    """Thresholds are the clip's own: the list of faults named a frame of which no picture had been kept."""
    scores = {"blur": np.zeros(100)}
    scores["blur"][3] = 0.9
    report = fed(tmp_path, source, speech, scores)
    scores["blur"][3] = 1.1
    report.write(SAID, "0123")
    assert flagged_frames(tmp_path).count("<img") == 1


def test_a_long_result_is_not_scored_as_a_whole_again_and_again(
    tmp_path: Path, source: VideoSource, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All frames so far were, every 48 frames: an hour's report took more time than its pictures."""
    monkeypatch.setattr(quality_report, "TAIL", 100)
    scores = {"blur": np.zeros(400)}
    scores["blur"][[20, 300]] = 2.0
    report = fed(tmp_path, source, speech, scores)
    assert isinstance(report._meter, Numbers)
    assert set(report._meter.asked) == {100}
    report.write(SAID, "0123")
    assert [picture.frame for picture in report._worst] == [20, 300]
    assert len(json.loads((tmp_path / "r.json").read_text())["scores"]["blur"]) == 400


def flagged_frames(folder: Path) -> str:
    """That section of the page."""
    return (folder / "r.html").read_text().split("Flagged frames")[1].split("Over time")[0]


def test_the_worst_of_each_kind_are_kept() -> None:
    many = [Picture(100 * i, b"", 9.0 + i, "blur") for i in range(30)]
    few = [Picture(50 + i, b"", 1.1, f"kind {i}") for i in range(3)]
    kept = worst_of([*many, *few])
    assert len(kept) == MOST_WORST
    assert {picture.kind for picture in kept} == {"blur", "kind 0", "kind 1", "kind 2"}
    assert max(picture.score for picture in kept) == 38.0


def test_what_was_changed_outside_of_the_box_is_seen() -> None:
    (item,) = items(1)
    assert changed(item) == (0.125, False)
    assert item.picture is not None
    picture = item.picture.copy()
    picture[0, 0] = 1
    assert changed(replace(item, picture=picture)) == (pytest.approx(0.125 + 1 / 1024), True)


def test_sync_that_cannot_be_told_is_said() -> None:
    openings = np.abs(np.sin(np.arange(100) / 3))
    assert "r = 1.00" in sync_words(openings, openings, Fraction(25))
    assert "not measured" in sync_words(openings, None, Fraction(25))
    assert "not measured" in sync_words(openings[:5], openings[:5], Fraction(25))
    assert "not measured" in sync_words(np.full(100, np.nan), openings, Fraction(25))


def test_what_goes_wrong_in_it_costs_nothing(
    tmp_path: Path, source: VideoSource, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Numbers):
        def update(self, item: Item) -> None:  # noqa: ARG002
            raise ZeroDivisionError("no face")

    job = Job("v.mp4", str(speech), "out.mp4")
    options = Options(video_path="v", audio_path="a", model_path="m", quality_report="r.html")
    report = QualityReport(tmp_path / "r.html", job, options, source, 3, lambda _envelope: Broken({}))
    for item in items(3):
        report.update(item)
    report.write(SAID, "0123")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "notice: there will be no quality report: ZeroDivisionError: no face\n"


def test_a_path_that_is_no_text_is_told_as_far_as_it_is(tmp_path: Path, source: VideoSource, speech: Path) -> None:
    """The page could not be encoded, and its .json lay there alone."""
    report = fed(tmp_path, source, speech, {"blur": np.zeros(5)})
    report.job = replace(report.job, video_path="caf\udce9.mp4")
    report.write(SAID, "0123")
    assert "caf\\udce9.mp4" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "r.json").read_text())["slate"]["picture"] == "caf\udce9.mp4"


def test_each_line_of_a_list_has_its_own(source: VideoSource) -> None:
    job = Job("v.mp4", "a.wav", "out/some_shot.mp4")
    one = Options(video_path="v", audio_path="a", model_path="m", quality_report="q/r.html")
    (report,) = open_report(job, one, source, 10, None)
    assert report.path == Path("q/r.html")
    (report,) = open_report(job, replace(one, generate_from_filelist=True), source, 10, None)
    assert report.path == Path("q/r_some_shot.html")
    assert open_report(job, replace(one, quality_report=None), source, 10, None) == []


# ------------------------------------------------------------------------------------------------------ the program


def test_a_run_writes_the_page_and_its_result_is_the_same(
    video: Path, speech: Path, checkpoint: Path, tmp_path: Path
) -> None:
    page_path = tmp_path / "new" / "quality é.html"
    arguments = [
        "--video_path", str(video), "--audio_path", str(speech), "--model_path", str(checkpoint), "--save_orig",
        "False", "--timestep_respacing", "ddim2", "--use_ddim", "True", "--sampling_seed", "7", "--device", "cpu",
    ]  # fmt: skip
    plain, reported = tmp_path / "plain.mp4", tmp_path / "a <b> & c.mp4"
    assert main([*arguments, "--out_path", str(plain)]) == 0
    stats = tmp_path / "stats.json"
    assert main([
        *arguments, "--out_path", str(reported), "--quality_report", str(page_path), "--stats", str(stats),
    ]) == 0  # fmt: skip
    assert plain.read_bytes() == reported.read_bytes()
    parsed = Parsed(page_path.read_text(encoding="utf-8"))
    assert "Quality report: a <b> & c.mp4" in parsed.words
    assert parsed.tags.count("img") >= MOST_CLOSEUPS
    read = json.loads(page_path.with_suffix(".json").read_text())
    assert (read["n_frames"], read["n_faces"]) == (12, 12)
    assert read["settings"]["--timestep_respacing"] == "ddim2"
    assert "report" in json.loads(stats.read_text())["ms_per_frame"]


def test_a_result_whose_name_is_no_text_has_its_report(
    video: Path, speech: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ended at the line that names the result: without its report, and with status 1."""
    arguments = [
        "--video_path", str(video), "--audio_path", str(speech), "--model_path", str(checkpoint), "--save_orig",
        "False", "--timestep_respacing", "ddim1", "--use_ddim", "True", "--sampling_seed", "7", "--device", "cpu",
        "--out_path", str(tmp_path / "caf\udce9.mp4"), "--quality_report", str(tmp_path / "caf\udce9.html"),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "caf\\udce9.html: " in capsys.readouterr().out
    assert "caf\\udce9.mp4" in (tmp_path / "caf\udce9.html").read_text(encoding="utf-8")


def test_stats_do_not_replace_the_reports_numbers(
    video: Path, speech: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model_path", str(checkpoint), "--device", "cpu", "--quality_report", str(tmp_path / "r.html")]
    single = ["--video_path", str(video), "--audio_path", str(speech), "--out_path", str(tmp_path / "o.mp4")]
    assert main([*flags, *single, "--stats", str(tmp_path / "r.json")]) == 2
    (tmp_path / "list.txt").write_text(f"{speech.name}\t{video.name}\n", encoding="utf-8")
    of_list = [
        "--generate_from_filelist", "True", "--filelist", str(tmp_path / "list.txt"), "--sample_path", str(tmp_path),
        "--test_video_dir", str(tmp_path),
    ]  # fmt: skip
    (tmp_path / speech.name).write_bytes(speech.read_bytes())
    (tmp_path / video.name).write_bytes(video.read_bytes())
    stats = tmp_path / f"r_{speech.name}_{video.name}.json"
    assert main([*flags, *of_list, "--stats", str(stats)]) == 1
    assert capsys.readouterr().err.count("writes this file; give another one") == 2


@pytest.mark.parametrize(
    ("path", "words"), [("file/r.html", "file/r.html: .* is not a folder"), ("r.htm", "give a name that ends in .html")]
)
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    path: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = ["--video_path", "v", "--audio_path", "a", "--model_path", "nothing"]
    assert main([*arguments, "--quality_report", str(tmp_path / path)]) == 2
    assert re.search(f"--quality_report .*{words}", capsys.readouterr().err)
