"""Measure a lip-synced video: `python scripts/evaluate.py RESULT --source VIDEO --audio AUDIO [--reference VIDEO]`.

Prints a table; `--json` and `--html` write it to files, the HTML with per-frame timelines and the worst frames. What
pictures alone tell is measured by guided_diffusion/quality.py's `QualityMeter`; the measures live beside what they
measure (guided_diffusion/quality.py, temporal_consistency.py, face_detection/lip_metrics.py, audio/audio.py), and
their docstrings say what they mean. Exit status 2 when nothing can be measured.
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import _path  # noqa: F401
from audio.audio import load_speech, rms_envelope
from audio.hparams import DEFAULT as HPARAMS
from face_detection.api import DETECTORS, FaceAlignment
from face_detection.lip_metrics import compare_openings, sync_correlation
from face_detection.tracks import FaceTrack, build_track
from face_detection.video_faces import find_faces
from guided_diffusion.errors import InputError
from guided_diffusion.quality import (
    METRICS,
    REFERENCE_METRICS,
    FindLandmarks,
    Metric,
    QualityMeter,
    QualityScores,
    compared_regions,
    known_face,
)
from guided_diffusion.store import file_digest, replace_when_complete
from guided_diffusion.streams import Item
from guided_diffusion.tfg_data_util import inside_frame
from guided_diffusion.video_util import VideoSource, count_frames, open_video
from openings import MESH_WEIGHTS, ReadOpening, mouth_reader
from perceptual import FETCH, WEIGHTS, Distance, load_lpips, ms_ssim

N_WORST = 3
FACE_HIDE_PERCENTAGE = 0.5
MS_SSIM, LPIPS = "ms_ssim_lips", ("lpips_face", "lpips_lower", "lpips_lips")
SYNCNET_SHA256 = "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442"


@dataclass
class Evaluation(QualityScores):
    """What was measured of one result, and what making it cost: see `read_stats`."""

    cost: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics, "not_measured": self.not_measured, "notes": self.notes, "cost": self.cost,
        }  # fmt: skip


@dataclass(frozen=True)
class Clips:
    """The videos, all at the result's rate, and what is known of the face in the source."""

    result: VideoSource
    source: VideoSource
    reference: VideoSource | None
    before: VideoSource | None
    track: FaceTrack

    @property
    def n_frames(self) -> int:
        return len(self.track.has_face)

    def items(self) -> Iterator[tuple[Item, np.ndarray | None]]:
        """Every frame of the source with the result's picture, of the source's size, and the reference or None."""
        size = slice(self.source.height), slice(self.source.width)
        references = self.reference.frames() if self.reference else iter(lambda: None, 0)
        videos = zip(self.source.frames(stop=self.n_frames), self.result.frames(), references, strict=False)
        for index, (source, result, reference) in enumerate(videos):
            face = self.track.face(index, index, bool(self.track.is_cut[index]))
            yield Item(source, face, picture=np.ascontiguousarray(result[size])), reference


def open_clips(
    result_path: str, source_path: str, reference_path: str | None, before_path: str | None, detector: FaceAlignment,
    notes: list[str],
) -> Clips:  # fmt: skip
    """Open the videos and look for the face in the source. Adds to `notes` what was left out.

    :raises InputError: when a file cannot be read, sizes differ, or there is no face.
    """
    result = open_video(result_path, 0)
    fps = float(result.fps)
    source = open_video(source_path, fps)
    reference = open_video(reference_path, fps) if reference_path else None
    before = open_video(before_path, fps) if before_path else None
    for video, allowed in ((result, 1), (before, 1), (reference, 0)):
        excess = (video.width - source.width, video.height - source.height) if video else ()
        if video and not all(0 <= e <= allowed for e in excess):
            raise InputError(
                f"{video.path} has {video.width} x {video.height} pixels, {source_path} {source.width} x "
                f"{source.height}; give videos of one size"
            )
    lengths = {video.path: count_frames(video) for video in (result, source, reference, before) if video}
    n_frames = min(lengths.values())
    if max(lengths.values()) > n_frames:
        said = ", ".join(f"{path} {length}" for path, length in lengths.items())
        notes.append(f"frames at {fps:g}/s: {said}; the first {n_frames} are measured")
    faces = find_faces(source.frames(stop=n_frames), detector.detect, batch_size=8)
    track = build_track(faces, n_frames, pads=(0, 0, 0, 0))
    if not track.has_face.all():
        notes.append(f"left out: {int((~track.has_face).sum())} of {n_frames} frames without a face")
    return Clips(result, source, reference, before, track)


# -------------------------------------------------------------------------------------------------------- measuring


def evaluate(clips: Clips, detector: FaceAlignment, face_hide_percentage: float) -> QualityScores:
    """Measure everything that needs only the videos, in one pass over the frames."""
    meter = QualityMeter(detector.get_landmarks_from_image, face_hide_percentage)
    for item, reference in clips.items():
        meter.update(item, reference)
    return meter.scores()


def measure_sync(clips: Clips, audio_path: str, evaluation: Evaluation) -> None:
    """Mouth opening against the sound's level."""
    opening = evaluation.series["mouth_opening"]
    names = ("sync_peak_r", "sync_lag_ms", "sync_r0", "sync_z")
    try:
        envelope = rms_envelope(load_speech(audio_path), HPARAMS.sample_rate, len(opening), clips.result.fps)
        evaluation.series["sound_level"] = envelope
        score = sync_correlation(opening, envelope, clips.result.fps)
    except InputError as error:
        evaluation.not_measured |= dict.fromkeys(names, str(error))
        return
    for name, value in zip(names, (score.peak_r, score.lag_ms, score.r0, score.z), strict=True):
        evaluation.add(name, value, "the sound or the mouth hardly changes")


def measure_truth(path: str | None, evaluation: Evaluation) -> None:
    """Mouth opening against the known one, as scripts/make_sample.py writes it."""
    if path is None:
        evaluation.not_measured["truth_r"] = "needs --truth"
        return
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        truth = np.array(content["opening"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--truth {path}: not a JSON file as scripts/make_sample.py writes it") from None
    opening = evaluation.series["mouth_opening"]
    n = min(len(opening), len(truth))
    measured = np.isfinite(opening[:n])
    opening, truth = opening[:n][measured], truth[:n][measured]
    # of a constant there is no correlation: NaN
    r = np.corrcoef(opening, truth)[0, 1] if len(truth) and np.ptp(opening) and np.ptp(truth) else np.nan
    evaluation.add("truth_r", r, "the mouth or the truth does not move")


def measure_movement(clips: Clips, reader: tuple[ReadOpening, str] | None, evaluation: Evaluation) -> None:
    """Mouth opening against that of another result of the same speech.

    :param reader: of `mouth_reader`.
    """
    names = ("opening_r", "opening_std")
    if clips.before is None or reader is None:
        evaluation.not_measured |= dict.fromkeys(names, "needs --before")
        return
    read, by = reader
    alone = replace(clips, reference=None)
    pair = (alone, replace(alone, result=clips.before))
    opening, before = (np.array([_opening(item, read) for item, _ in each.items()]) for each in pair)
    evaluation.notes.append(f"opening_r, opening_std: read by {by}")
    for name, value in zip(names, compare_openings(opening, before), strict=True):
        evaluation.add(name, value, "the mouth hardly moves: what is left is the landmarks' noise")


def _opening(item: Item, read: ReadOpening) -> float:
    return np.nan if item.face is None or item.picture is None else read(item.picture, item.face.box)


def measure_perception(
    clips: Clips, find_landmarks: FindLandmarks, weights: str | None, evaluation: Evaluation
) -> None:
    """LPIPS of the compared regions, where AlexNet's features are at hand, and the lips' multi-scale SSIM.

    :param weights: a file with AlexNet's features; None takes the one in checkpoints/, if it is there.
    :raises InputError: the file that is named is not there or not the right one.
    """
    path = Path(weights or WEIGHTS)
    if weights is not None and not path.is_file():
        raise InputError(f"--lpips_weights {weights}: no such file; make it by {FETCH}")
    if clips.reference is None:
        evaluation.not_measured |= dict.fromkeys((MS_SSIM, *LPIPS), "needs --reference")
        return
    if not path.is_file():
        evaluation.not_measured |= dict.fromkeys(LPIPS, f"no checkpoints/{path.name}; make it by {FETCH}")
    try:
        measures = {MS_SSIM: ms_ssim} | (dict.fromkeys(LPIPS, load_lpips(path)) if path.is_file() else {})
        series = _of_regions(clips, find_landmarks, measures)
    except ImportError as error:
        evaluation.not_measured |= dict.fromkeys((MS_SSIM, *LPIPS), f"{error}; pip install torchmetrics")
        return
    for name, values in series.items():
        evaluation.series[name] = values
        mean = np.nan if np.isnan(values).all() else float(np.nanmean(values))
        evaluation.add(name, mean, "in no frame the face is known and large enough")


def _of_regions(clips: Clips, find_landmarks: FindLandmarks, measures: Mapping[str, Distance]) -> dict[str, np.ndarray]:
    """Per frame what each measure, whose name ends in that of a region, says of the result and the reference there."""
    series = {name: np.full(clips.n_frames, np.nan) for name in measures}
    for index, (item, reference) in enumerate(clips.items()):
        face = known_face(item, find_landmarks)
        if face is None or item.picture is None or reference is None:
            continue
        regions = compared_regions(face, item.frame.shape)
        for name, measure in measures.items():
            if region := regions.get(name.rsplit("_", 1)[1]):
                series[name][index] = measure(item.picture[region], reference[region])
    return series


def measure_lse(result_path: str, weights: str | None, evaluation: Evaluation) -> None:
    """LSE-C and LSE-D (Chung & Zisserman 2016, as Prajwal et al. 2020 report them) by the package syncnet-python."""
    reason = ""
    files = {name: Path(weights or "", name) for name in ("syncnet_v2.model", "sfd_face.pth")}
    if weights is None:
        reason = "needs --syncnet_weights: a folder with syncnet_v2.model and sfd_face.pth of VGG's lipsync page"
    elif missing := [name for name, path in files.items() if not path.is_file()]:
        raise InputError(f"--syncnet_weights {weights}: has no {', '.join(missing)}")
    elif file_digest(str(files["syncnet_v2.model"])) != SYNCNET_SHA256:
        raise InputError(f"--syncnet_weights {weights}: syncnet_v2.model is not the published file; download it anew")
    else:
        try:
            from syncnet_python import SyncNetPipeline
        except ImportError as error:
            reason = f"{error}; in an environment of its own: pip install syncnet-python (it brings another OpenCV)"
    if reason:
        evaluation.not_measured |= {"lse_c": reason, "lse_d": reason}
        return
    pipeline = SyncNetPipeline(
        {"syncnet_weights": str(files["syncnet_v2.model"]), "s3fd_weights": str(files["sfd_face.pth"])}, device="cpu"
    )
    _, _, _, confidence, distance, _, _ = pipeline.inference(video_path=result_path, audio_path=None)
    evaluation.add("lse_c", confidence, "SyncNet found no face track")
    evaluation.add("lse_d", distance, "SyncNet found no face track")


def read_stats(path: str | None) -> tuple[dict[str, float], float]:
    """Of generate.py's --stats: milliseconds per frame of each part and peak memory; its face_hide_percentage.

    Without them nothing, and the default.
    """
    if path is None:
        return {}, FACE_HIDE_PERCENTAGE
    try:
        stats = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = {f"{part} ms/frame": float(ms) for part, ms in stats["ms_per_frame"].items()}
        memory = {f"peak {kind} MiB": float(size) for kind, size in stats["peak_memory_mib"].items()}
        face_hide_percentage = float(stats.get("options", {}).get("face_hide_percentage", FACE_HIDE_PERCENTAGE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--stats {path}: not a file that generate.py --stats wrote for one video") from None
    return {**parts, **memory}, face_hide_percentage


# -------------------------------------------------------------------------------------------------------- reporting


def table(evaluation: Evaluation) -> str:
    """A line per metric, and what was not measured and why."""
    lines = []
    for metric in METRICS:
        value = evaluation.metrics.get(metric.name)
        if value is not None:
            lines.append(f"{metric.group:10} {metric.name:19} {value:9.3f}  {metric.meaning}")
        else:
            lines.append(f"{metric.group:10} {metric.name:19}         –  not measured: {_reason(evaluation, metric)}")
    lines += [f"{'cost':10} {name:19} {value:9.1f}" for name, value in evaluation.cost.items()]
    if not evaluation.cost:
        lines.append(f"{'cost':10} {'':19}         –  not measured: needs --stats of generate.py")
    return "\n".join([*lines, *(f"note: {note}" for note in evaluation.notes)])


def _reason(evaluation: Evaluation, metric: Metric) -> str:
    return evaluation.not_measured.get(metric.name, "not asked for")


def report_html(evaluation: Evaluation, clips: Clips, title: str) -> str:
    """A self-contained page: the table, a timeline per series, the worst frames as pictures (source | result)."""
    rows = "".join(
        f"<tr><td>{m.group}</td><td>{m.name}</td><td>"
        + (f"{evaluation.metrics[m.name]:.3f}" if m.name in evaluation.metrics else "–")
        + f"</td><td>{html.escape(m.meaning if m.name in evaluation.metrics else _reason(evaluation, m))}</td></tr>"
        for m in METRICS
    )
    rows += "".join(f"<tr><td>cost</td><td>{n}</td><td>{v:.1f}</td><td></td></tr>" for n, v in evaluation.cost.items())
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in evaluation.notes)
    worst = worst_frames(evaluation)
    pictures = _pictures(clips, {index for indices in worst.values() for index in indices})
    figures = "".join(
        f"<h3>{name}</h3><div>"
        + "".join(
            f'<figure><img alt="frame {i}" src="data:image/jpeg;base64,{pictures[i]}">'
            f"<figcaption>frame {i}: {evaluation.series[name][i]:.3f}</figcaption></figure>"
            for i in indices
        )
        + "</div>"
        for name, indices in worst.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body {{ font: 15px/1.4 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse }} td {{ padding: .2em .8em; border-bottom: 1px solid #ddd }}
td:nth-child(3) {{ text-align: right; font-variant-numeric: tabular-nums }}
figure {{ display: inline-block; margin: .4em }} figcaption {{ font-size: 13px; color: #555 }} img {{ max-width: 100% }}
</style></head><body>
<h1>{html.escape(title)}</h1>{notes}<table>{rows}</table>
<h2>Over time</h2><img alt="timelines" src="data:image/png;base64,{_timelines(evaluation, clips)}">
<h2>Worst frames</h2><p>Source on the left, result on the right.</p>{figures}
</body></html>
"""


def worst_frames(evaluation: Evaluation) -> dict[str, list[int]]:
    """The N_WORST frames of each metric that has a timeline and a bad direction."""
    worst = {}
    for metric in METRICS:
        series = evaluation.series.get(metric.name)
        if metric.worst and series is not None and np.isfinite(series).any():
            order = np.argsort(-metric.worst * series)  # NaN comes last
            worst[metric.name] = [int(i) for i in order[: min(N_WORST, int(np.isfinite(series).sum()))]]
    return worst


def _pictures(clips: Clips, wanted: set[int]) -> dict[int, str]:
    """Source and result side by side around the box, as base64 JPEG, of the wanted frames."""
    pictures = {}
    for index, (item, _) in enumerate(islice(clips.items(), max(wanted, default=-1) + 1)):
        if index in wanted and item.face is not None and item.picture is not None:
            y1, y2, x1, x2 = item.face.box
            margin = (y2 - y1) // 5
            around, _ = inside_frame((y1 - margin, y2 + margin, x1 - margin, x2 + margin), item.frame.shape)
            pair = np.hstack([item.frame[around], item.picture[around]])
            size = (320, max(1, round(320 * pair.shape[0] / pair.shape[1])))
            pair = cv2.cvtColor(cv2.resize(pair, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
            pictures[index] = base64.b64encode(cv2.imencode(".jpg", pair)[1].tobytes()).decode()
    return pictures


def _timelines(evaluation: Evaluation, clips: Clips) -> str:
    """A plot per series over the seconds, as base64 PNG."""
    from matplotlib.figure import Figure

    order = [*(m.name for m in METRICS), "mouth_opening", "sound_level"]
    shown = [n for n in order if n in evaluation.series and np.isfinite(evaluation.series[n]).any()]
    figure = Figure(figsize=(10, 1.3 * len(shown)), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(len(shown), sharex=True)), shown, strict=True):
        axes.plot(np.arange(clips.n_frames) / float(clips.result.fps), evaluation.series[name], linewidth=1)
        axes.set_title(name, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    figure.supxlabel("seconds", fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return base64.b64encode(png.getvalue()).decode()


def _write(path: str | None, content: Callable[[], str]) -> None:
    if path is not None:
        with replace_when_complete(Path(path)) as part:
            part.write_text(content(), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", help="the lip-synced video")
    parser.add_argument("--source", required=True, help="the video that it was made from")
    parser.add_argument("--audio", required=True, help="the speech that it says")
    parser.add_argument("--reference", help="the true video, when there is one (reconstruction)")
    parser.add_argument("--before", help="the same speech on the same video, without what is tried: for opening_*")
    parser.add_argument("--truth", help="JSON with the true mouth opening of the speech (scripts/make_sample.py)")
    parser.add_argument("--face_detector", default="dlib", choices=DETECTORS)
    parser.add_argument("--lpips_weights", help=f"AlexNet's features, for LPIPS; default checkpoints/{WEIGHTS.name}")
    parser.add_argument("--mesh_weights", help=f"the face mesh, for opening_*; default checkpoints/{MESH_WEIGHTS.name}")
    parser.add_argument("--syncnet_weights", help="folder of SyncNet's weights, for LSE-C and LSE-D")
    parser.add_argument("--stats", help="what generate.py --stats wrote, for the cost and --face_hide_percentage")
    parser.add_argument(
        "--face_hide_percentage", type=float,
        help=f"lower part of the box that was generated; by default that of --stats, else {FACE_HIDE_PERCENTAGE}",
    )  # fmt: skip
    parser.add_argument("--json", help="write the values here")
    parser.add_argument("--html", help="write a self-contained report here")
    arguments = parser.parse_args(argv)
    try:
        cost, hidden = read_stats(arguments.stats)
        if arguments.face_hide_percentage is not None:
            hidden = arguments.face_hide_percentage
        if not 0 < hidden <= 1:
            raise InputError(f"--face_hide_percentage {hidden}: give a share above 0, up to 1")
        detector = FaceAlignment(arguments.face_detector)
        asked = arguments.before or arguments.mesh_weights
        reader = mouth_reader(arguments.mesh_weights, detector.get_landmarks_from_image) if asked else None
        notes: list[str] = []
        clips = open_clips(arguments.result, arguments.source, arguments.reference, arguments.before, detector, notes)
        evaluation = Evaluation(**vars(evaluate(clips, detector, hidden)), cost=cost)
        evaluation.notes[:0] = notes
        if clips.reference is None:
            evaluation.not_measured |= dict.fromkeys(REFERENCE_METRICS, "needs --reference")
        measure_sync(clips, arguments.audio, evaluation)
        measure_truth(arguments.truth, evaluation)
        measure_movement(clips, reader, evaluation)
        measure_perception(clips, detector.get_landmarks_from_image, arguments.lpips_weights, evaluation)
        measure_lse(arguments.result, arguments.syncnet_weights, evaluation)
        _write(arguments.json, lambda: json.dumps(evaluation.as_json(), indent=2))
        _write(arguments.html, lambda: report_html(evaluation, clips, Path(arguments.result).name))
    except InputError as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    print(table(evaluation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
