"""Measure a lip-synced video: `python scripts/evaluate.py RESULT --source VIDEO --audio AUDIO [--reference VIDEO]`.

Prints a table; `--json` and `--html` write it to files, the HTML with per-frame timelines and the worst frames. The
measures live beside what they measure (post_processing.py, temporal_consistency.py, face_detection/lip_metrics.py,
audio/audio.py); their docstrings say what they mean. Exit status 2 when nothing can be measured.
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from skimage.metrics import structural_similarity

import _path  # noqa: F401
from audio.audio import load_speech, rms_envelope
from audio.hparams import DEFAULT as HPARAMS
from face_detection.api import DETECTORS, LIP, FaceAlignment
from face_detection.lip_metrics import landmark_distance, mouth_opening, sync_correlation
from face_detection.tracks import FaceTrack, build_track, find_faces
from guided_diffusion.errors import InputError
from guided_diffusion.store import file_digest, replace_when_complete
from guided_diffusion.tfg_data_util import visible_box
from guided_diffusion.video_util import VideoSource, count_frames, open_video
from post_processing import (
    box_contour,
    lip_sharpness,
    mask_contour,
    outside_difference,
    ring_delta_e,
    seam_ratio,
)
from temporal_consistency import FlickerMeter, WarpErrorMeter

MAX_PSNR = 100.0  # dB, what equal pictures count as
MIN_SSIM_SIDE = 7  # px, SSIM's window
N_WORST = 3
SYNCNET_SHA256 = "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442"

Box = tuple[int, int, int, int]


class Metric(NamedTuple):
    """A line of the table. `worst`: 1 when a high value in a frame is bad, -1 when a low one is, 0 for neither."""

    group: str
    name: str
    meaning: str
    worst: int = 0


METRICS = (
    Metric("image", "psnr_face", "dB, face box, against the reference; higher is better", -1),
    Metric("image", "psnr_lower", "dB, lower half of the box; higher is better", -1),
    Metric("image", "ssim_face", "face box; 1 is equal", -1),
    Metric("image", "ssim_lower", "lower half of the box; 1 is equal", -1),
    Metric("image", "lpips_face", "face box; 0 is equal"),
    Metric("seam", "seam_mask", "step at the mask's upper edge / the source's own; 1 is no seam", 1),
    Metric("seam", "seam_box", "step at the box's sides and lower edge / the source's own; 1 is no seam", 1),
    Metric("colour", "delta_e_excess", "ΔE2000 across the box's contour less the source's; 0 is no cast", 1),
    Metric("colour", "delta_e_deviation", "its standard deviation over time; 0 is steady"),
    Metric("temporal", "flicker_brightness", "of the lower face / the source's; 1 is as steady, below 1 over-smoothed"),
    Metric("temporal", "flicker_texture", "likewise for detail"),
    Metric("temporal", "warp_error", "what optical flow does not explain / the source's; 1 is as steady", 1),
    Metric("lip-sync", "sync_peak_r", "correlation of mouth opening and sound level at the best lag"),
    Metric("lip-sync", "sync_lag_ms", "that lag; natural speech has -40 to 200"),
    Metric("lip-sync", "sync_r0", "correlation without a lag"),
    Metric("lip-sync", "sync_z", "peak above wrong alignments, in standard deviations"),
    Metric("lip-sync", "truth_r", "correlation of mouth opening and the true one; 1 is equal"),
    Metric("lip-sync", "lmd", "lip landmarks' distance from the reference / inter-ocular distance; 0 is equal", 1),
    Metric("lip-sync", "lse_c", "SyncNet confidence; higher is better"),
    Metric("lip-sync", "lse_d", "SyncNet distance; lower is better"),
    Metric("sharpness", "lip_sharpness", "of the lips / the source's; 1 is as sharp", -1),
    Metric("untouched", "outside_difference", "largest difference from the source outside the box, in levels", 1),
)


@dataclass
class Evaluation:
    """What was measured of one result; `series` holds a value per frame, NaN where there is none."""

    metrics: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    series: dict[str, np.ndarray] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, reason: str) -> None:
        """Record a value, or why there is none where it is NaN."""
        if np.isfinite(value):
            self.metrics[name] = float(value)
        else:
            self.not_measured[name] = reason

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
    track: FaceTrack

    @property
    def n_frames(self) -> int:
        return len(self.track.has_face)

    def frames(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """(source, result, reference or None) of every frame, of the source's size."""
        size = slice(self.source.height), slice(self.source.width)
        references = self.reference.frames() if self.reference else iter(lambda: None, 0)
        for source, result, reference in zip(
            self.source.frames(stop=self.n_frames), self.result.frames(), references, strict=False
        ):
            yield source, np.ascontiguousarray(result[size]), reference

    def box(self, index: int) -> Box | None:
        """The visible part of the face's box: what can be measured."""
        size = self.source.height, self.source.width
        return visible_box(self.track.boxes[index], size) if self.track.has_face[index] else None


def open_clips(
    result_path: str, source_path: str, reference_path: str | None, detector: FaceAlignment, notes: list[str]
) -> Clips:
    """Open the videos and look for the face in the source. Adds to `notes` what was left out.

    :raises InputError: when a file cannot be read, sizes differ, or there is no face.
    """
    result = open_video(result_path, 0)
    fps = float(result.fps)
    source = open_video(source_path, fps)
    reference = open_video(reference_path, fps) if reference_path else None
    for video, allowed in ((result, 1), *(((reference, 0),) if reference else ())):
        excess = (video.width - source.width, video.height - source.height)
        if not all(0 <= e <= allowed for e in excess):
            raise InputError(
                f"{video.path} has {video.width} x {video.height} pixels, {source_path} {source.width} x "
                f"{source.height}; give videos of one size"
            )
    lengths = {video.path: count_frames(video) for video in (result, source, reference) if video}
    n_frames = min(lengths.values())
    if max(lengths.values()) > n_frames:
        said = ", ".join(f"{path} {length}" for path, length in lengths.items())
        notes.append(f"frames at {fps:g}/s: {said}; the first {n_frames} are measured")
    faces = find_faces(source.frames(stop=n_frames), detector.detect, batch_size=8)
    track = build_track(faces, n_frames, pads=(0, 0, 0, 0))
    if not track.has_face.all():
        notes.append(f"left out: {int((~track.has_face).sum())} of {n_frames} frames without a face")
    return Clips(result, source, reference, track)


# -------------------------------------------------------------------------------------------------------- measuring


def evaluate(clips: Clips, audio_path: str, detector: FaceAlignment, evaluation: Evaluation) -> None:
    """Measure everything that needs only the videos and the sound, in one pass over the frames."""
    flicker, warp = FlickerMeter(), WarpErrorMeter()
    rows: list[dict[str, float]] = []
    for index, (source, result, reference) in enumerate(clips.frames()):
        box, is_cut = clips.box(index), bool(clips.track.is_cut[index])
        landmarks = _landmarks(clips, index, source, detector)
        flicker.update(source, result, box, landmarks, is_cut)
        warp.update(source, result, box, is_cut)
        rows.append(measure_frame(source, result, reference, box, landmarks, detector) if box else {})
    names = {name for row in rows for name in row}
    series = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    no_face = "no frame of it could be measured"
    no_reference = "needs --reference"
    for name in ("psnr_face", "psnr_lower"):
        error = series.pop(f"mse_{name}", None)
        series[name] = np.array([_psnr(e) for e in error]) if error is not None else np.full(len(rows), np.nan)
        overall = _psnr(float(np.nanmean(error))) if error is not None else np.nan
        evaluation.add(name, overall, no_reference)
    for name in ("ssim_face", "ssim_lower", "lmd"):
        evaluation.add(name, _mean(series.get(name)), no_reference if clips.reference is None else no_face)
    for name in ("seam_mask", "seam_box", "lip_sharpness"):
        # the ratio of the means: a frame whose source shows almost nothing there would rule a mean of ratios
        ratio = _mean(series[f"{name}_result"]) / _mean(series[f"{name}_source"])
        series[name] = series.pop(f"{name}_result") / series.pop(f"{name}_source")
        evaluation.add(name, ratio, no_face)
    evaluation.add("delta_e_excess", _mean(series["delta_e_excess"]), no_face)
    evaluation.add("delta_e_deviation", float(np.nanstd(series["delta_e_excess"])), no_face)
    evaluation.add("outside_difference", float(np.nanmax(series["outside_difference"])), no_face)

    scores, too_short = flicker.scores(), "no five frames in a row with a face whose movement can be followed"
    evaluation.add("flicker_brightness", scores.brightness, too_short)
    evaluation.add("flicker_texture", scores.texture, too_short)
    series |= {"flicker_brightness": scores.brightness_series, "flicker_texture": scores.texture_series}
    evaluation.notes.append(
        f"flicker is measured in {scores.n_frames} of {len(rows)} frames: blinks and quick movements are left out"
    )
    warp_error = warp.scores()
    evaluation.add("warp_error", warp_error.ratio, "no two frames in a row with a face")
    series["warp_error"] = warp_error.series
    evaluation.series = series
    measure_sync(clips, audio_path, series["mouth_opening"], evaluation)


def measure_frame(
    source: np.ndarray,
    result: np.ndarray,
    reference: np.ndarray | None,
    box: Box,
    landmarks: np.ndarray | None,
    detector: FaceAlignment,
) -> dict[str, float]:
    """The measures of one frame by name; frames uint8 [H, W, 3], landmarks of the source float32 [68, 2]."""
    result_landmarks = detector.get_landmarks_from_image(result, box)
    values = {
        "delta_e_excess": ring_delta_e(result, box) - ring_delta_e(source, box),
        "outside_difference": float(outside_difference(source, result, box)),
        "mouth_opening": np.nan if result_landmarks is None else mouth_opening(result_landmarks),
    }
    for which, frame in (("result", result), ("source", source)):
        values[f"seam_mask_{which}"] = seam_ratio(frame, mask_contour(box))
        values[f"seam_box_{which}"] = seam_ratio(frame, box_contour(box))
        sharpness = np.nan if landmarks is None else lip_sharpness(frame, landmarks[LIP])
        values[f"lip_sharpness_{which}"] = sharpness
    if reference is not None:
        y1, y2, x1, x2 = box
        for part, top in (("face", y1), ("lower", (y1 + y2) // 2)):
            region = slice(top, y2), slice(x1, x2)
            values[f"mse_psnr_{part}"] = float(np.mean((result[region].astype(np.float32) - reference[region]) ** 2))
            values[f"ssim_{part}"] = _ssim(result[region], reference[region])
        reference_landmarks = detector.get_landmarks_from_image(reference, box)
        if result_landmarks is not None and reference_landmarks is not None:
            values["lmd"] = landmark_distance(result_landmarks, reference_landmarks)
    return values


def _landmarks(clips: Clips, index: int, source: np.ndarray, detector: FaceAlignment) -> np.ndarray | None:
    box = clips.box(index)
    if box is None:
        return None
    if clips.track.landmarks is not None:
        return clips.track.landmarks[index]
    return detector.get_landmarks_from_image(source, box)


def _psnr(mean_square: float) -> float:
    """dB for levels of 0..255, MAX_PSNR for equal pictures."""
    return float(min(MAX_PSNR, 10 * np.log10(255**2 / mean_square))) if mean_square > 0 else MAX_PSNR


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    if min(a.shape[:2]) < MIN_SSIM_SIDE:
        return np.nan
    return float(structural_similarity(a, b, channel_axis=2))


def _mean(values: np.ndarray | None) -> float:
    return float(np.nanmean(values)) if values is not None and np.isfinite(values).any() else np.nan


def measure_sync(clips: Clips, audio_path: str, opening: np.ndarray, evaluation: Evaluation) -> None:
    """Mouth opening against the sound's level."""
    evaluation.series["mouth_opening"] = opening
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


def measure_lpips(clips: Clips, evaluation: Evaluation) -> None:
    """LPIPS over the face box (Zhang et al. 2018, AlexNet), when its backbone's weights are on this machine."""
    backbone = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if clips.reference is None:
        evaluation.not_measured["lpips_face"] = "needs --reference"
        return
    if not backbone.is_file():
        evaluation.not_measured["lpips_face"] = (
            f"no {backbone.name}; get it: python -c "
            "'import torchvision; torchvision.models.alexnet(weights=\"DEFAULT\")'"
        )
        return
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        evaluation.not_measured["lpips_face"] = f"{error}; pip install torchmetrics"
        return
    lpips = LearnedPerceptualImagePatchSimilarity("alex").eval()
    values = np.full(clips.n_frames, np.nan)
    for index, (_, result, reference) in enumerate(clips.frames()):
        box = clips.box(index)
        if box is not None and reference is not None:
            crops = (frame[box[0] : box[1], box[2] : box[3]] for frame in (result, reference))
            tensors = [torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for crop in crops]
            with torch.inference_mode():
                values[index] = float(lpips(*tensors))
    evaluation.series["lpips_face"] = values
    evaluation.add("lpips_face", _mean(values), "no frame with a face")


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


def read_cost(path: str | None) -> dict[str, float]:
    """Milliseconds per frame of each part and peak memory, from generate.py's --stats."""
    if path is None:
        return {}
    try:
        stats = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = {f"{part} ms/frame": float(ms) for part, ms in stats["ms_per_frame"].items()}
        memory = {f"peak {kind} MiB": float(size) for kind, size in stats["peak_memory_mib"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--stats {path}: not a file that generate.py --stats wrote for one video") from None
    return {**parts, **memory}


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
    for index, (source, result, _) in enumerate(islice(clips.frames(), max(wanted, default=-1) + 1)):
        box = clips.box(index)
        if index in wanted and box is not None:
            y1, y2, x1, x2 = box
            margin = (y2 - y1) // 5
            around = slice(max(0, y1 - margin), y2 + margin), slice(max(0, x1 - margin), x2 + margin)
            pair = np.hstack([source[around], result[around]])
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
    parser.add_argument("--truth", help="JSON with the true mouth opening of the speech (scripts/make_sample.py)")
    parser.add_argument("--face_detector", default="dlib", choices=DETECTORS)
    parser.add_argument("--syncnet_weights", help="folder of SyncNet's weights, for LSE-C and LSE-D")
    parser.add_argument("--stats", help="what generate.py --stats wrote, for the cost")
    parser.add_argument("--json", help="write the values here")
    parser.add_argument("--html", help="write a self-contained report here")
    arguments = parser.parse_args(argv)
    evaluation = Evaluation()
    try:
        evaluation.cost = read_cost(arguments.stats)
        detector = FaceAlignment(arguments.face_detector)
        clips = open_clips(
            arguments.result, arguments.source, arguments.reference, detector, evaluation.notes
        )
        evaluate(clips, arguments.audio, detector, evaluation)
        measure_truth(arguments.truth, evaluation)
        measure_lpips(clips, evaluation)
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
