"""What leaks from the old mouth, and whether the new one follows the sound: `python scripts/leak.py CONFIG.toml`.

CONFIG is as scripts/ablation.py's (docs/leak.toml is one): each of its clips is made with its speech and with silence,
for every row of flags. Two tests on the mouth's opening, pooled over pieces of PIECE frames of all clips:

silence   with silence as the sound: the share of frames with an open mouth, and the correlation of the opening with the
          source's at the same time, at other times, and with other clips' sources. What is left is the old mouth's.
triplets  the correlation of the opening with the level of its own speech, of that speech shifted, and of other speech.

p: how often swapping the two of a pair in pieces at random gives as large a difference (scipy.stats.permutation_test).
Anchors: the true video (what a perfect result gives, and, in silence, a whole leak), a frozen mouth, and the true mouth
of another sentence. METHODS.md: Lip-sync without SyncNet. The same command continues where it stopped.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import soundfile
from evaluate import Clips, open_clips
from scipy.stats import permutation_test

import _path  # noqa: F401
from audio.audio import load_speech, rms_envelope
from audio.hparams import DEFAULT as HPARAMS
from face_detection.api import FaceAlignment
from face_detection.lip_metrics import MAX_LAG, mouth_opening
from guided_diffusion.errors import InputError
from guided_diffusion.store import content_key, file_digest
from guided_diffusion.streams import Item
from post_processing import paste_crop

PIECE = 15  # frames: a word or two
SHIFTS = tuple(sign * (MAX_LAG + k) for sign in (-1, 1) for k in (1, 4, 7))
"""Frames by which a sequence is shifted against the mouth: more than lips may be early or late."""
OPEN = 0.08
"""Opening above which a mouth counts as open, in inter-ocular distances: dlib finds up to 0.04 on closed lips of sharp
faces, up to 0.07 on those of a soft network."""
RESAMPLES = 9999
LEAST_SPREAD = 1e-12  # below it is the arithmetic's noise
SILENCE_RATE = 16000


# ------------------------------------------------------------------------------------------------------------ the test


@dataclass(frozen=True)
class Triplets:
    """Each piece's share of the correlation of a mouth with what it should follow, with that shifted, and with others.

    :param matched: float [pieces], whose mean is the correlation; `shifted` and `other` likewise, NaN without others.
    """

    matched: np.ndarray
    shifted: np.ndarray
    other: np.ndarray

    def summary(self) -> dict[str, float | None]:
        """Means, and the p-values of matched being no more than the other two; None where nothing was measured."""
        values = {
            "matched": _mean(self.matched), "shifted": _mean(self.shifted), "other": _mean(self.other),
            "p_shifted": _p_value(self.matched, self.shifted), "p_other": _p_value(self.matched, self.other),
            "pieces": len(self.matched),
        }  # fmt: skip
        return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _p_value(matched: np.ndarray, other: np.ndarray) -> float:
    """One-sided, of paired pieces: under the null hypothesis the two of a pair may be swapped."""
    known = np.isfinite(matched) & np.isfinite(other)
    if known.sum() < 2:
        return np.nan
    test = permutation_test(
        (matched[known], other[known]), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=RESAMPLES, alternative="greater", rng=0,
    )  # fmt: skip
    return float(test.pvalue)


def triplets(
    mouths: Sequence[np.ndarray], own: Sequence[np.ndarray], others: Sequence[Sequence[np.ndarray]]
) -> Triplets:
    """Pooled over clips; the frames whose mouth is known are divided into pieces of about PIECE.

    :param mouths: per clip the opening, float [n], NaN where it is unknown.
    :param own: per clip what it should follow, float [n].
    :param others: per clip any number of those that it should not follow, float [n] each.
    """
    rows = []
    for mouth, sound, wrong in zip(mouths, own, others, strict=True):
        shifted = [np.roll(sound, shift) for shift in SHIFTS]
        followed = [shares(mouth, sounds) for sounds in ([sound], shifted, wrong)]
        known = np.flatnonzero(np.isfinite(mouth))
        n_pieces = round(len(known) / PIECE)
        for piece in np.array_split(known, n_pieces) if n_pieces else []:
            rows.append([each[piece].sum() * n_pieces / len(known) for each in followed])
    return Triplets(*np.array(rows).reshape(-1, 3).T)


def shares(mouth: np.ndarray, sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Each frame's share of the correlation with the sounds, whose mean is Pearson's r: float [n].

    NaN where the mouth is unknown, or no sounds are given; 0 where one of two is constant.
    """
    known = np.isfinite(mouth)
    if not (sounds and known.any()):
        return np.full(len(mouth), np.nan)
    found = np.full((len(sounds), len(mouth)), np.nan)
    for row, sound in zip(found, sounds, strict=True):
        a, b = (values[known] - values[known].mean() for values in (mouth, sound))
        spread = np.sqrt((a @ a) * (b @ b)) / known.sum()
        row[known] = a * b / spread if spread > LEAST_SPREAD else 0
    return found.mean(axis=0)


def open_share(mouths: Iterable[np.ndarray]) -> float | None:
    """The share of open mouths among the known ones; None without any."""
    opening = np.concatenate(list(mouths))
    known = opening[np.isfinite(opening)]
    return float(np.mean(known > OPEN)) if len(known) else None


# ---------------------------------------------------------------------------------------------------------- the mouths

Show = Callable[[Item], np.ndarray]
"""Which picture of an item is looked at."""


def frozen(clips: Clips) -> Show:
    """The source with the face's first crop in every box: the head goes on, the mouth does not."""
    item = next(item for item, _ in clips.items() if item.face is not None)
    assert item.face is not None
    y1, y2, x1, x2 = item.face.box
    first = item.frame[max(0, y1) : y2, max(0, x1) : x2]
    return lambda item: item.frame if item.face is None else paste_crop(item.frame, first, item.face.box)


def result(item: Item) -> np.ndarray:
    assert item.picture is not None
    return item.picture


def source(item: Item) -> np.ndarray:
    return item.frame


def openings(clips: Clips, detector: FaceAlignment, shows: Sequence[Show]) -> list[np.ndarray]:
    """The mouth's opening in each frame, float [n] for each of the pictures, NaN where no landmarks are found."""
    rows = []
    for item, _ in clips.items():
        face = item.face
        points = [None if face is None else detector.get_landmarks_from_image(s(item), face.box) for s in shows]
        rows.append([np.nan if p is None else mouth_opening(p) for p in points])
    return list(np.array(rows).T)


def level(sound: Path, n_frames: int, fps: float) -> np.ndarray:
    """The sound's level at each frame, float [n]."""
    return rms_envelope(load_speech(str(sound)), HPARAMS.sample_rate, n_frames, fps)


# ------------------------------------------------------------------------------------------------------------ the runs


@dataclass(frozen=True)
class Inputs:
    """A clip's files: `own` is the video's own sound, `speech` what it is made to say."""

    name: str
    video: Path
    own: Path
    speech: Path
    silence: Path
    script: Path
    flags: list[str]


def inputs_of(clip: ablation.Clip, out: Path) -> Inputs:
    """:raises InputError: when the clip cannot be cut to its part."""
    video, own = ablation.cut(dataclasses.replace(clip, audio=None), out / "cuts")
    speech = clip.audio or own
    silence = out / "silence" / f"{content_key({'speech': file_digest(str(speech))})}.wav"
    if not silence.is_file():
        silence.parent.mkdir(parents=True, exist_ok=True)
        seconds = len(load_speech(str(speech))) / HPARAMS.sample_rate
        soundfile.write(silence, np.zeros(int(seconds * SILENCE_RATE), np.float32), SILENCE_RATE)
    script = ablation.ORACLE if clip.oracle else ablation.GENERATE
    return Inputs(clip.name, video, own, speech, silence, script, [*clip.oracle, *clip.flags])


def make(config: ablation.Config, row: ablation.Row, clip: Inputs, audio: Path, out: Path) -> Path:
    """The result of a clip with a sound, made where it is not there yet. :raises ablation.RunFailed: it cannot be."""
    files = (config.model_path, clip.video, audio)
    flags = [*config.flags, *clip.flags, *row.flags]
    key = content_key({"inputs": [file_digest(str(path)) for path in files], "flags": flags})
    path = out / "runs" / f"{key}.mp4"
    if not path.is_file():
        inputs = ["--model_path", str(config.model_path), "--video_path", str(clip.video), "--audio_path", str(audio)]
        ablation.execute(
            clip.script,
            [*flags, *inputs, "--out_path", str(path), "--save_orig", "False", "--work_dir", str(out / "work")],
        )
    return path


@dataclass
class Mouths:
    """Openings of one kind of video, of all clips in their order: with their speech, and with silence."""

    name: str
    speaking: list[np.ndarray] = dataclasses.field(default_factory=list)
    silent: list[np.ndarray] = dataclasses.field(default_factory=list)


def run(config: ablation.Config, out: Path) -> list[dict[str, Any]]:
    """A line of figures for every row of flags, then for the anchors: see `lines_of`.

    :raises InputError: when a clip cannot be used. :raises ablation.RunFailed: a result could not be made.
    """
    detector = FaceAlignment("dlib")
    clips = [inputs_of(clip, out) for clip in config.clips]
    made = [Mouths(row.name) for row in config.rows]
    true, still = Mouths("true video"), Mouths("frozen mouth")
    rates: list[float] = []
    for clip in clips:
        for row, mouths in zip(config.rows, made, strict=True):
            speaking, silent = (
                open_clips(str(make(config, row, clip, audio, out)), str(clip.video), None, None, detector, [])
                for audio in (clip.speech, clip.silence)
            )
            shows = [result, source, frozen(speaking)] if mouths is made[0] else [result]
            spoken, *anchors = openings(speaking, detector, shows)
            mouths.speaking.append(spoken)
            mouths.silent += openings(silent, detector, [result])
            for anchor, opening in zip((true, still), anchors, strict=False):
                anchor.speaking.append(opening)
            print(f"{clip.name}, {row.name}: made and measured", flush=True)
        rates.append(float(speaking.result.fps))
    true.silent, still.silent = true.speaking, still.speaking
    return lines_of(clips, rates, made, still, true)


def lines_of(
    clips: Sequence[Inputs], rates: Sequence[float], made: Sequence[Mouths], still: Mouths, true: Mouths
) -> list[dict[str, Any]]:
    """By "name" the figures of "triplets" and "silence" (not of the true mouth of another sentence)."""
    sounds = list(dict.fromkeys([*(clip.speech for clip in clips), *(clip.own for clip in clips)]))
    speeches, own = [clip.speech for clip in clips], [clip.own for clip in clips]

    def follows(mouths: Sequence[np.ndarray], matched: Sequence[Path], of: Sequence[int]) -> dict[str, float | None]:
        """The mouths of these clips against the level of the matched sounds, and of all others."""
        levels = [
            [level(s, len(mouths[k]), rates[k]) for s in (matched[k], *(s for s in sounds if s != matched[k]))]
            for k in of
        ]
        shown = [mouths[k] for k in of]
        return triplets(shown, [of_it for of_it, *_ in levels], [others for _, *others in levels]).summary()

    def leaks(mouths: Sequence[np.ndarray]) -> dict[str, float | None]:
        """The mouths against those of the sources, and of the other videos."""
        sources = [np.nan_to_num(opening, nan=_mean(opening)) for opening in true.speaking]
        lengths = [min(len(mouth), len(opening)) for mouth, opening in zip(mouths, sources, strict=True)]
        others = [
            [np.resize(opening, n) for opening, other in zip(sources, clips, strict=True) if other.video != clip.video]
            for n, clip in zip(lengths, clips, strict=True)
        ]
        shown, theirs = ([values[:n] for values, n in zip(all_, lengths, strict=True)] for all_ in (mouths, sources))
        return {"open": open_share(shown), **triplets(shown, theirs, others).summary()}

    everywhere = range(len(clips))
    lines: list[dict[str, Any]] = [
        {"name": mouths.name, "triplets": follows(mouths.speaking, said, everywhere), "silence": leaks(mouths.silent)}
        for mouths, said in (*((mouths, speeches) for mouths in [*made, still]), (true, own))
    ]
    if foreign := [k for k in everywhere if speeches[k] != own[k]]:
        triplet = follows(true.speaking, speeches, foreign)
        lines.append({"name": "true mouth, another sentence", "triplets": triplet})
    return lines


COLUMNS = ("matched", "shifted", "other", "p_shifted", "p_other", "pieces")
ENDS = ("p (shifted)", "p (other)", "pieces")


def to_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """Two tables: triplets, then silence."""
    heads = {
        "triplets": ["triplets: r of the mouth with", "own speech", "shifted", "other", *ENDS],
        "silence": ["silence: r of the mouth with", "the source's", "shifted", "others'", *ENDS, "open frames"],
    }
    parts = []
    for test, head in heads.items():
        parts += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for line in lines:
            if test in line:
                values = line[test]
                cells = [_cell(name, values[name]) for name in (*COLUMNS, *(["open"] if "open" in values else []))]
                parts.append(f"| {' | '.join([line['name'], *cells])} |")
        parts.append("")
    return "\n".join(parts)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ablation.NO_VALUE
    if name == "open":
        return f"{100 * value:.0f} %"
    return f"{value:.0f}" if name == "pieces" else f"{value:.4f}" if name.startswith("p_") else f"{value:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG.toml", help="checkpoint, flags, clips and rows")
    parser.add_argument("--out", metavar="DIR", help="folder for results and tables; default leak/<CONFIG's name>")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out or Path("leak", Path(arguments.config).stem)).resolve()
    try:
        config = ablation.read_config(Path(arguments.config))
        ablation.make_folder(out)
        lines = run(config, out)
    except (InputError, ablation.RunFailed) as error:
        print(f"leak.py: error: {error}", file=sys.stderr)
        return 2
    ablation.write_text(out / "leak.json", json.dumps(lines, indent=2, allow_nan=False))
    ablation.write_text(out / "leak.md", to_markdown(lines))
    print(to_markdown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
