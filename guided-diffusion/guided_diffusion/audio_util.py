"""Reading the sound of a file, and writing a soundtrack, with PyAV.

Time 0 of a file is its first picture that decodes, where it has pictures (cover art does not count), else its first
sample. What is read of a file starts there, sound and pictures alike, and so does the result, which starts at time 0
of both of its inputs: sound that begins after the pictures of its own file has silence in front, sound that begins
before them is cut.

Sound keeps to its timestamps: a hole is filled with silence, and of sound that overlaps what came before, the overlap
is dropped. Less than TOLERANCE is rounding: there the samples follow each other. A jump by more than LONGEST_HOLE
ahead or LONGEST_OVERLAP back is a clock that started anew: there, too, the samples follow each other.
"""

import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, groupby
from operator import itemgetter
from typing import NamedTuple

import av
import av.container
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.resampler import AudioResampler

from .errors import InputError
from .media_util import decode, first_picture_time, open_media, seconds

TOLERANCE = Fraction(20, 1000)  # seconds; a lost AAC frame leaves a hole of 21 ms, Matroska rounds times to 1 ms
START_TOLERANCE = Fraction(1, 1000)  # seconds
LONGEST_HOLE = 3600  # seconds
LONGEST_OVERLAP = 1  # seconds; at the start of the sound as long as a hole
MOST_CHANNELS = 64  # that FFmpeg's resampler takes
CANCELLED = 10**-1.2  # share of two channels' mean power that their mix has: 12 dB down

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")
_AAC_BITS_PER_CHANNEL = 96_000

# Speech lies in the centre, where a layout has one, and keeps its level there; in both front channels it does, too.
_CENTRE_WEIGHTS = {"FC": 1.0, "FL": 0.5, "FR": 0.5, "LFE": 0.0, "LFE2": 0.0}
_SURROUND_WEIGHT = 0.5**1.5  # 3 dB less than the front channels, as in ITU-R BS.775
_USUAL_LAYOUTS = {6: "5.1", 8: "7.1"}  # of channels without names


def read_audio(path: str) -> tuple[np.ndarray, int]:
    """Read the sound of a sound or video file, from its time 0 (see above).

    Returns float32 [n] in [-1, 1], the mix of its channels at the file's own rate, and that rate in Hz.
    Raises InputError.
    """
    blocks, rate = open_sound(path)
    mono = bytearray()
    for block in blocks:
        mono += block.tobytes()
    return np.frombuffer(mono, np.float32), rate


def open_sound(path: str) -> tuple[Iterator[np.ndarray], int]:
    """The sound of `read_audio` in blocks of about a second, and its rate: memory does not grow with its length.

    The mix is the average of the channels. Where the layout has a centre and more than two channels, the weights are
    1 for the centre, 0.5 for front left and right, 0.35 for the others but 0 for the low-frequency ones. Of two
    channels that cancel each other the louder one is taken, and a notice printed. Raises InputError, here when there
    is no sound and between the blocks when it cannot be used.
    """
    with open_media(path) as container:
        rate = _audio_stream(container, path).rate
    return _joined(_mono(path, rate), rate), rate


def channel_mix(path: str) -> str:
    """In words: the layout of a file's sound, and what `open_sound` makes of it. Raises InputError."""
    with open_media(path) as container:
        layout = _audio_stream(container, path).layout
    if layout.nb_channels == 1:
        return "mono"
    weights = _centre_weights(layout)
    return f"{layout.name}, {'averaged' if weights is None else 'mostly the centre'}"


class Soundtrack:
    """The sound of a file from its time 0 (see above), decoded and encoded as far as the pictures have come.

    It keeps its channels. Of more than eight, those with names are mixed to 7.1 and others averaged.
    """

    def __init__(self, path: str, output: av.container.OutputContainer) -> None:
        self._input = open_media(path)
        source = _audio_stream(self._input, path)
        self._rate = min(_AAC_RATES, key=lambda rate: abs(rate - source.rate))
        n_channels = min(source.layout.nb_channels, len(_AAC_LAYOUTS))
        if n_channels < source.layout.nb_channels and not _has_names(source.layout):
            n_channels = 1
            sound = _sound(self._input, source, path, self._rate)
            self._samples = (samples.mean(axis=1) for samples, _ in sound)
        else:
            sound = _sound(self._input, source, path, self._rate, _AAC_LAYOUTS[n_channels - 1])
            self._samples = (samples for samples, _ in sound)
        layout = _AAC_LAYOUTS[n_channels - 1]
        self._output = output
        self._stream = output.add_stream("aac", rate=self._rate, layout=layout)
        self._stream.bit_rate = _AAC_BITS_PER_CHANNEL * n_channels
        self._decoded = AudioFifo()
        self._n_encoded = 0

    def advance(self, time: Fraction) -> None:
        """Encode up to `time` in seconds, or to the end of the sound."""
        n_wanted = round(time * self._rate) - self._n_encoded
        while self._decoded.samples < n_wanted and (samples := next(self._samples, None)) is not None:
            decoded = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "flt", self._stream.layout.name)
            decoded.rate = self._rate
            self._decoded.write(decoded)
        frame = self._decoded.read(n_wanted, partial=True) if n_wanted > 0 else None
        if frame is not None:
            frame.pts, frame.time_base = self._n_encoded, Fraction(1, self._rate)
            self._n_encoded += frame.samples
            self._output.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._output.mux(self._stream.encode(None))
        self._input.close()


class _Run(NamedTuple):
    """Sound without a hole, all of one kind. gap: seconds from the end of what came before; negative: they overlap."""

    number: int
    gap: Fraction


def _audio_stream(container: av.container.InputContainer, path: str) -> av.AudioStream:
    """The default track: others may be a commentary, or describe the pictures."""
    best, most = container.streams.best("audio"), 0
    for stream in ([] if best is None else [best]) + list(container.streams.audio):
        if isinstance(stream, av.AudioStream) and stream.codec_context is not None and stream.rate:
            if stream.layout.nb_channels <= MOST_CHANNELS:
                return stream
            most = max(most, stream.layout.nb_channels)
    if most:
        raise InputError(
            f"{path!r}: its sound has {most} channels, and at most {MOST_CHANNELS} can be mixed; give it as a mono or "
            "stereo file"
        )
    raise InputError(f"{path!r} has no sound that can be decoded; name a sound file or a video with sound")


def _has_names(layout: av.AudioLayout) -> bool:
    return all(channel.name != "NONE" for channel in layout.channels)


def _in_runs(frames: Iterator[av.AudioFrame], start: Fraction | None) -> Iterator[tuple[_Run, av.AudioFrame]]:
    """Decoded frames with their runs. start: time 0 of the file, None: that of the first frame."""
    position, run, kind = start, _Run(0, Fraction(0)), None
    tolerance, longest_overlap = START_TOLERANCE, LONGEST_HOLE
    for frame in frames:
        time = seconds(frame)
        jump = Fraction(0) if time is None or position is None else time - position
        before, kind = kind, (frame.format.name, frame.layout.name, frame.rate)
        if abs(jump) > tolerance or kind != before:
            is_gap = abs(jump) > tolerance and -longest_overlap <= jump <= LONGEST_HOLE
            run = _Run(run.number + 1, jump if is_gap else Fraction(0))
        if position is None or abs(jump) > tolerance:
            position = time
        if position is not None:
            position += Fraction(frame.samples, frame.rate)
        tolerance, longest_overlap = TOLERANCE, LONGEST_OVERLAP
        yield run, frame


def _sound(
    container: av.container.InputContainer, stream: av.AudioStream, path: str, rate: int, layout: str | None = None
) -> Iterator[tuple[np.ndarray, av.AudioLayout]]:
    """Decode sound to float32 [n, channels] at `rate` Hz from time 0, with the channels' layout.

    layout: what to mix the channels to; None keeps them, and then they may change on the way.
    """
    ahead = 0  # samples that the sound to come is ahead of its times: silence to put in; negative: samples to drop
    frames = _in_runs(decode(container.demux(stream)), first_picture_time(path))
    for run, members in groupby(frames, key=itemgetter(0)):
        ahead += round(run.gap * rate)
        resampler = AudioResampler("flt", layout, rate)  # planar frames of over 8 channels crash PyAV 18.1
        for frame in chain((frame for _, frame in members), [None]):  # None asks for the rest
            for resampled in resampler.resample(frame):
                if resampled is None:
                    continue
                samples = resampled.to_ndarray().reshape(resampled.samples, -1)
                if not np.isfinite(samples).all():
                    raise InputError(f"{path!r}: its sound has samples that are not numbers; give it as 16-bit sound")
                while ahead > 0:
                    silence = np.zeros((min(ahead, rate), samples.shape[1]), np.float32)
                    ahead -= len(silence)
                    yield silence, resampled.layout
                dropped = min(-ahead, len(samples))
                ahead += dropped
                if dropped < len(samples):
                    yield samples[dropped:], resampled.layout


def _mono(path: str, rate: int) -> Iterator[np.ndarray]:
    """The mix of the channels in blocks float32 [n] in [-1, 1] (see `open_sound`)."""
    louder = _louder_channel(path)
    is_empty = True
    with open_media(path) as container:
        for samples, layout in _sound(container, _audio_stream(container, path), path, rate):
            is_empty = False
            if louder is not None and samples.shape[1] == 2:
                mono = samples[:, louder]
            else:
                weights = _centre_weights(layout)
                mono = samples.mean(axis=1, dtype=np.float32) if weights is None else samples @ weights
            yield np.clip(mono, -1, 1)
    if is_empty:
        raise InputError(
            f"{path!r}: nothing of its sound could be decoded, or it ends before the first picture; give another file"
        )


def _centre_weights(layout: av.AudioLayout) -> np.ndarray | None:
    """float32 [channels], or None for the plain average."""
    if not _has_names(layout) and layout.nb_channels in _USUAL_LAYOUTS:
        layout = av.AudioLayout(_USUAL_LAYOUTS[layout.nb_channels])
    names = [channel.name for channel in layout.channels]
    if len(names) <= 2 or "FC" not in names:
        return None
    return np.array([_CENTRE_WEIGHTS.get(name, _SURROUND_WEIGHT) for name in names], np.float32)


def _louder_channel(path: str) -> int | None:
    """Of two channels that cancel each other the louder one, after a notice; None for other sound."""
    products = np.zeros((2, 2))
    with open_media(path) as container:
        stream = _audio_stream(container, path)
        if stream.layout.nb_channels != 2:
            return None
        for samples, _ in _sound(container, stream, path, stream.rate):
            if samples.shape[1] == 2:
                products += samples.T @ samples
    if products.sum() / 4 >= CANCELLED * np.trace(products) / 2:
        return None
    louder = int(products[1, 1] > products[0, 0])
    print(
        f"notice: {path!r}: its two channels cancel each other (one is inverted); the {('left', 'right')[louder]} one, "
        "the louder, is what the network hears",
        file=sys.stderr,
    )
    return louder


def _joined(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same in blocks of at least `size`, but for the last: what follows costs by the block."""
    held: list[np.ndarray] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= size:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
