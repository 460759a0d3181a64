"""The quality report as one page of HTML that needs nothing from outside; and what it shows."""

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

import numpy as np

from .faults import KINDS, Fault
from .video_util import timecode

MOST_ROWS = 60  # of faults; the JSON file has all
POINTS = 640  # of a timeline
HEIGHT = 90.0
MANY = 0.25  # share of the frames with a fault
NEAR = 0.5  # of the threshold: kinds that never come so near have no timeline
FLAG = re.compile(r"--\w+( [\w.]+)?")
GRADES = {"good": "Fit for use", "look": "Look at it before use", "bad": "Not fit for use"}


@dataclass(frozen=True)
class Picture:
    """Source and result side by side, as JPEG. score, kind: of the worst fault in it; 1 is its threshold."""

    frame: int
    jpeg: bytes
    score: float = 0.0
    kind: str = ""


@dataclass(frozen=True)
class Assessment:
    """What was found in one result; numbers per frame are float [n_frames], NaN where unknown.

    :param n_faces: frames with the face.
    :param scores: by the kind of fault, 1 is its threshold.
    :param openings: of the mouth; `envelope` is the sound's level or None, `sync` what they have in common, in words.
    :param sound: what `audio.assess` says of it.
    :param cost: ms per frame of each part of the run.
    :param memory: MiB at the peak.
    """

    slate: Mapping[str, str]
    fps: float
    n_frames: int
    n_faces: int
    faults: Sequence[Fault]
    scores: Mapping[str, np.ndarray]
    openings: np.ndarray
    envelope: np.ndarray | None
    sync: str
    worst: Sequence[Picture]
    closeups: Sequence[Picture]
    sound: Mapping[str, Any]
    settings: Mapping[str, str]
    cost: Mapping[str, float]
    seconds: float
    memory: Mapping[str, float]
    versions: Mapping[str, str]

    @property
    def n_faulty(self) -> int:
        """Frames with a fault."""
        return len({frame for fault in self.faults for frame in range(fault.first, fault.last + 1)})

    @property
    def grade(self) -> str:
        """Of GRADES."""
        unchanged = sum(fault.last - fault.first + 1 for fault in self.faults if fault.kind == "unchanged")
        if self.n_faces == 0 or self.n_faulty > MANY * self.n_frames or unchanged > self.n_faces / 2:
            return "bad"
        return "look" if self.faults or self.n_faces < self.n_frames or self._harm else "good"

    @property
    def reasons(self) -> list[str]:
        """Of the grade, in words."""
        n, found = self.n_frames, []
        if self.faults:
            kinds = ", ".join(sorted({fault.kind for fault in self.faults}))
            worst = max(fault.score for fault in self.faults)
            share = f"{self.n_faulty} of {n} frames ({100 * self.n_faulty / n:.1f} %)"
            found.append(f"{share} have faults, at most {worst:.1f} times the threshold: {kinds}")
        if self.n_faces < n:
            found.append(f"{n - self.n_faces} of {n} frames show the source as it is, as no face was found there")
        found += [f"the sound: {line}" for line in self._harm]
        return found or [f"no faults were found in {n} frames; play it once with its sound before you accept it"]

    @property
    def _harm(self) -> list[str]:
        return [line for line in self.sound.get("verdict", []) if not line.startswith("good")]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and words, without the pictures; a number that is not known is null."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del plain["worst"], plain["closeups"]
        return plain | {
            "grade": self.grade,
            "reasons": self.reasons,
            "n_faulty": self.n_faulty,
            "faults": [
                {**dataclasses.asdict(fault), "timecode": timecode(fault.first, self.fps)} for fault in self.faults
            ],
            "scores": {name: _numbers(values) for name, values in self.scores.items()},
            "openings": _numbers(self.openings),
            "envelope": None if self.envelope is None else _numbers(self.envelope),
        }  # fmt: skip


def _numbers(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


# ------------------------------------------------------------------------------------------------------------- HTML

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title><style>
:root { color-scheme: light dark; --page: #fff; --text: #1c1d20; --soft: #5d626b; --line: #d9dce1; --band: #f3f4f6;
  --good: #1a7f45; --look: #9a6200; --bad: #c02f2f; --wave: #2563b8; --sound: #b9c3d0; --fault: #c02f2f2e }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --text: #e6e8eb; --soft: #9aa1ac; --line: #33373e;
  --band: #1e2125; --good: #46c07c; --look: #e0a63b; --bad: #ef6f6f; --wave: #6fa8ff; --sound: #4b5563;
  --fault: #ef6f6f40 } }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 760px; margin: 0 auto; padding: 16px; color: var(--text);
  background: var(--page); overflow-wrap: break-word }
h1 { font-size: 1.3em; margin: 0 0 .5em } h2 { font-size: 1.1em; margin: 2em 0 .5em }
h3 { font-size: 1em; margin: 1em 0 .1em; font-weight: 600 }
.verdict { border-left: 6px solid; padding: .6em 1em; background: var(--band) } .verdict p { margin: .2em 0 }
.verdict ul { margin: .4em 0; padding-left: 1.2em; color: var(--text) }
.good { color: var(--good) } .look { color: var(--look) } .bad { color: var(--bad) }
.grade { font-size: 1.25em; font-weight: 700 }
table { border-collapse: collapse; width: 100% } td, th { padding: .3em .6em .3em 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--soft); font-size: .9em }
td.name { color: var(--soft); width: 8em } td.value { overflow-wrap: anywhere }
td, figcaption { font-variant-numeric: tabular-nums } .code { white-space: nowrap }
figure { margin: .8em 0 } figure img { width: 100%; height: auto; display: block }
svg { width: 100%; height: 90px; display: block }
path, line { vector-effect: non-scaling-stroke } .times { display: flex; justify-content: space-between }
figcaption, .soft { color: var(--soft); font-size: .9em }
</style></head><body>
<h1>$title</h1>
<div class="verdict $grade"><p class="grade">$headline</p><ul>$reasons</ul></div>
<h2>Slate</h2>$slate
<h2>Faults</h2>$faults
<h2>Flagged frames</h2><p class="soft">Source on the left, result on the right.</p>$worst
<h2>Over time</h2>$timelines
<h2>Mouth close-ups</h2><p class="soft">Source on the left, result on the right.</p>$closeups
<h2>Sound</h2>$sound
<h2>Settings that differ from the defaults</h2>$settings
<h2>Cost</h2>$cost
<h2>Versions</h2>$versions
</body></html>
""")


def page(found: Assessment) -> str:
    """The page. All words that come from outside are escaped."""
    name = found.slate.get("result", "").replace("\\", "/").rsplit("/", 1)[-1]
    cost = {part: f"{ms:.1f} ms per frame" for part, ms in found.cost.items()}
    peak = {f"peak {kind}": f"{size:.0f} MiB" for kind, size in found.memory.items()}
    return PAGE.substitute(
        title=escape(f"Quality report: {name}"),
        grade=found.grade,
        headline=GRADES[found.grade],
        reasons="".join(f"<li>{escape(reason)}</li>" for reason in found.reasons),
        slate=_table(found.slate),
        faults=_faults(found),
        worst="".join(_figure(picture, found) for picture in found.worst) or "<p>None.</p>",
        timelines=_timelines(found),
        closeups="".join(_figure(picture, found) for picture in found.closeups) or "<p>None.</p>",
        sound=_sound(found.sound),
        settings=_table(found.settings) if found.settings else "<p>None.</p>",
        cost=_table({"whole run": f"{found.seconds:.1f} s", **cost, **peak}),
        versions=_table(found.versions),
    )


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(
        f'<tr><td class="name">{escape(name)}</td><td class="value">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _faults(found: Assessment) -> str:
    if not found.faults:
        return "<p>None.</p>"
    worst_first = sorted(found.faults, key=lambda fault: -fault.score)
    shown = sorted(worst_first[:MOST_ROWS], key=lambda fault: fault.first)
    rows = "".join(
        f'<tr><td class="code">{timecode(fault.first, found.fps)}<br>{timecode(fault.last, found.fps)}<br>'
        f"<b>{escape(fault.kind)}</b> {fault.score:.1f}</td><td>{escape(KINDS[fault.kind].meaning)}<br>"
        f'<span class="soft">{FLAG.sub(_unbroken, escape(fault.helps))}</span></td></tr>'
        for fault in shown
    )
    more = len(found.faults) - len(shown)
    rest = f'<p class="soft">And {more} milder ones, in the JSON file beside this page.</p>' if more else ""
    header = "<tr><th>first and last frame, kind</th><th>what it is, what helps</th></tr>"
    return f'<table>{header}{rows}</table><p class="soft">The number says how much: 1 is the threshold.</p>{rest}'


def _unbroken(found: re.Match[str]) -> str:
    return f'<span class="code">{found[0]}</span>'


def _figure(picture: Picture, found: Assessment) -> str:
    said = timecode(picture.frame, found.fps)
    if picture.kind:
        said += f": {picture.kind}, {picture.score:.1f}"
    data = base64.b64encode(picture.jpeg).decode()
    return (
        f'<figure><img alt="{escape(said)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )


def _sound(sound: Mapping[str, Any]) -> str:
    verdict = "".join(f"<p>{escape(str(line))}</p>" for line in sound.get("verdict", []))
    units = {
        "sample_rate": "Hz", "bandwidth": "Hz", "seconds": "s", "loudness": "LUFS", "peak": "dB", "snr": "dB",
        "wada_snr": "dB", "dnsmos": "of 5", "clipped": "of 1", "silence": "of 1",
    }  # fmt: skip
    rows = {
        name.replace("_", " "): f"{_number(value)} {units.get(name, '')}"
        for name, value in sound.items()
        if name not in ("verdict", "silences", "not_measured") and value is not None
    }
    return verdict + _table(rows)


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# -------------------------------------------------------------------------------------------------------- timelines


def _timelines(found: Assessment) -> str:
    sound = "" if found.envelope is None else "; the grey line is the sound's level"
    charts = [("mouth opening", f"over the mouth's width{sound}; {found.sync}", _mouth_chart(found))]
    near = {kind: values for kind, values in found.scores.items() if len(values) and np.nanmax(values) >= NEAR}
    charts += [
        (kind, f"{KINDS[kind].meaning}; the dashed line is the threshold", _score_chart(found, kind, values))
        for kind, values in near.items()
    ]
    far = ", ".join(kind for kind in found.scores if kind not in near)
    rest = f'<p class="soft">Nowhere near a fault: {escape(far)}.</p>' if far else ""
    return rest + "".join(
        f'<h3>{escape(name)}</h3><p class="soft">{escape(words)}</p>{chart}' for name, words, chart in charts
    )


def _mouth_chart(found: Assessment) -> str:
    lines = []
    if found.envelope is not None and len(found.envelope) and found.envelope.max() > 0:
        lines.append(_line(found.envelope / found.envelope.max(), "var(--sound)", 2.5))
    known = found.openings[np.isfinite(found.openings)]
    if len(known):
        lines.append(_line(found.openings / max(float(known.max()), 1e-6), "var(--wave)"))
    return _chart(found, "".join(lines), "mouth opening", ())


def _score_chart(found: Assessment, kind: str, values: np.ndarray) -> str:
    top = max(2.0, float(np.nanmax(values)))
    threshold = HEIGHT * (1 - 1 / top)
    dashed = (
        f'<line x1="0" x2="{POINTS}" y1="{threshold:.1f}" y2="{threshold:.1f}" stroke="var(--soft)" '
        'stroke-dasharray="4 4"/>'
    )
    return _chart(
        found, dashed + _line(np.maximum(values, 0) / top, "var(--wave)"), kind,
        [fault for fault in found.faults if fault.kind == kind],
    )  # fmt: skip


def _chart(found: Assessment, lines: str, name: str, faults: Sequence[Fault]) -> str:
    """A chart of all frames, with the faults as bars behind the lines and the time below."""
    n = max(1, found.n_frames)
    bars = "".join(
        f'<rect x="{POINTS * fault.first / n:.1f}" width="{max(2.0, POINTS * (fault.last + 1 - fault.first) / n):.1f}" '
        f'y="0" height="{HEIGHT:.0f}" fill="var(--fault)"/>'
        for fault in faults
    )
    times = "".join(f"<span>{timecode(frame, found.fps)}</span>" for frame in (0, n // 2, n - 1))
    return (
        f'<svg viewBox="0 0 {POINTS} {HEIGHT:.0f}" preserveAspectRatio="none" role="img" aria-label="{escape(name)}">'
        f'{bars}<line x1="0" x2="{POINTS}" y1="{HEIGHT:.0f}" y2="{HEIGHT:.0f}" stroke="var(--line)"/>{lines}</svg>'
        f'<div class="times soft">{times}</div>'
    )


def _line(values: np.ndarray, colour: str, width: float = 1.3) -> str:
    """A line of values in [0, 1]; where many frames share a point it takes the highest; unknown ones leave a gap."""
    per_point = -(-len(values) // POINTS)
    padded = np.pad(np.asarray(values, np.float64), (0, -len(values) % per_point), constant_values=np.nan)
    groups = padded.reshape(-1, per_point)
    known = np.isfinite(groups)
    points = np.where(known.any(axis=1), np.where(known, groups, -np.inf).max(axis=1), np.nan)
    step = POINTS / max(1, len(points) - 1)
    path, is_drawing = [], False
    for place, value in enumerate(points):
        if np.isfinite(value):
            path.append(f"{'L' if is_drawing else 'M'}{place * step:.1f} {HEIGHT * (1 - min(1.0, value)):.1f}")
        is_drawing = bool(np.isfinite(value))
    return f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
