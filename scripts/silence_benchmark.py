"""How still the mouth is in silence, with and without --silence_gate: `python scripts/silence_benchmark.py --help`.

Silences of 1 and 3 s are cut into a speech, empty or with music or noise in them, and generate.py is run with the gate
and without. Openings are measured on the results' pictures, in the frames that the gate leaves alone and in those at
rest. Flags that are not listed here are generate.py's.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from noise_benchmark import RATE, noise
from painted import face_boxes, openings, pictures

import _path  # noqa: F401
from audio.audio import load_speech
from audio.blocks import resampled
from audio.silence import SpeechListener, rest_shares
from guided_diffusion.errors import InputError
from guided_diffusion.video_util import open_video

SECONDS = 4  # of the speech are kept
SILENCES = (1, 3)  # seconds, after a third and two thirds of it
LEVEL = 0.05  # RMS of what is in them
PAUSE = 480  # samples: each is put where the speech is softest over so many, within half a second


def with_silences(speech: np.ndarray, fill: str | None = None) -> np.ndarray:
    """Speech at RATE, float32, the first SECONDS of it, with SILENCES; `fill`: of noise_benchmark.py's noises."""
    speech = speech[: SECONDS * RATE]
    parts, last = [], 0
    for number, seconds in enumerate(SILENCES, start=1):
        middle = len(speech) * number // (len(SILENCES) + 1)
        starts = range(middle - RATE // 4, middle + RATE // 4, PAUSE // 2)
        at = min(starts, key=lambda start: float(np.square(speech[start : start + PAUSE]).sum())) + PAUSE // 2
        silence = np.zeros(seconds * RATE) if fill is None else LEVEL * noise(fill, seconds * RATE)
        parts += [speech[last:at], silence.astype(np.float32)]
        last = at
    return np.concatenate([*parts, speech[last:]])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("video")
    parser.add_argument("audio", help="speech")
    parser.add_argument("--fill", choices=["white", "pink", "hum", "music"], help="what the silences hold")
    arguments, flags = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        sound = with_silences(load_speech(arguments.audio), arguments.fill)
        audio, work = str(Path(folder) / "sound.wav"), str(Path(folder) / "work")
        soundfile.write(audio, sound, RATE)
        results = [
            pictures(
                arguments.video, audio, str(Path(folder) / f"{gate}.mp4"),
                ["--silence_gate", str(gate), "--work_dir", work, *flags],
            )
            for gate in (0, 1)
        ]  # fmt: skip
    listener = SpeechListener(resampled)
    for _ in listener([sound], RATE, RATE):
        pass
    boxes = face_boxes(arguments.video)
    shares = rest_shares(listener.spans, len(results[0]), open_video(arguments.video).fps)
    speaking, at_rest = shares == 0, shares == 1
    print(f"frames: {speaking.sum()} speak, {at_rest.sum()} are at rest")
    print("speaking frames differ by", np.abs(results[1][speaking].astype(int) - results[0][speaking]).max())
    for name, frames in zip(("without", "with"), results, strict=True):
        opening = openings(frames, boxes)
        (mean, spread), (rest_mean, rest_spread) = (
            (np.nanmean(opening[which]), np.nanstd(opening[which])) for which in (speaking, at_rest)
        )
        print(f"{name} the gate: opening in speech {mean:.3f} ± {spread:.3f}, at rest {rest_mean:.3f} ± "
              f"{rest_spread:.3f}; ratios {rest_mean / mean:.2f}, {rest_spread / spread:.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"silence_benchmark.py: error: {error}", file=sys.stderr)
        sys.exit(2)
