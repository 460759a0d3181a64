"""Reading the sound of a file, and writing a soundtrack, with PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, groupby

import av
import av.container
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.resampler import AudioResampler

from .errors import InputError
from .media_util import decode, open_media

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")
_AAC_BITS_PER_CHANNEL = 96_000


def read_audio(path: str) -> tuple[np.ndarray, int]:
    """Read the sound of a sound or video file.

    Returns float32 [n] in [-1, 1], the average of its channels at the file's own rate, and that rate in Hz.
    Sample 0 is the first of the sound track, wherever it starts relative to the pictures. Raises InputError.
    """
    mono = bytearray()
    with open_media(path) as container:
        stream = _audio_stream(container, path)
        rate = stream.rate
        for frame in _sound(container, stream, rate):
            samples = frame.to_ndarray().reshape(frame.samples, -1)
            mono += samples.mean(axis=1, dtype=np.float32).tobytes()
    if not mono:
        raise InputError(f"{path!r}: nothing of its sound could be decoded; it is damaged or of an unknown codec")
    sound = np.frombuffer(mono, np.float32)
    return np.clip(sound, -1, 1, out=sound), rate


class Soundtrack:
    """The sound of a file, decoded and encoded as far as the pictures have come."""

    def __init__(self, path: str, output: av.container.OutputContainer) -> None:
        self._input = open_media(path)
        source = _audio_stream(self._input, path)
        self._rate = min(_AAC_RATES, key=lambda rate: abs(rate - source.rate))
        n_channels = min(source.layout.nb_channels, len(_AAC_LAYOUTS))
        layout = _AAC_LAYOUTS[n_channels - 1]
        self._frames = _sound(self._input, source, self._rate, layout)
        self._output = output
        self._stream = output.add_stream("aac", rate=self._rate, layout=layout)
        self._stream.bit_rate = _AAC_BITS_PER_CHANNEL * n_channels
        self._decoded = AudioFifo()
        self._n_encoded = 0

    def advance(self, time: Fraction) -> None:
        """Encode up to `time` in seconds, or to the end of the sound."""
        n_wanted = round(time * self._rate) - self._n_encoded
        while self._decoded.samples < n_wanted and (frame := next(self._frames, None)) is not None:
            self._decoded.write(frame)
        frame = self._decoded.read(n_wanted, partial=True) if n_wanted > 0 else None
        if frame is not None:
            frame.pts, frame.time_base = self._n_encoded, Fraction(1, self._rate)
            self._n_encoded += frame.samples
            self._output.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._output.mux(self._stream.encode(None))
        self._input.close()


def _audio_stream(container: av.container.InputContainer, path: str) -> av.AudioStream:
    for stream in container.streams.audio:
        if stream.codec_context is not None and stream.rate:
            return stream
    raise InputError(f"{path!r} has no sound that can be decoded; name a sound file or a video with sound")


def _sound(
    container: av.container.InputContainer, stream: av.AudioStream, rate: int, layout: str | None = None
) -> Iterator[av.AudioFrame]:
    """Decode sound to interleaved float frames at `rate` Hz; layout None keeps the channels as they are."""
    kinds = groupby(decode(container.demux(stream)), lambda frame: (frame.format.name, frame.layout.name, frame.rate))
    for _, frames in kinds:  # more than one if the stream changes on the way
        resampler = AudioResampler("flt", layout, rate)  # planar frames of over 8 channels crash PyAV 18.1
        for frame in chain(frames, [None]):  # None asks for the rest
            for resampled in resampler.resample(frame):
                if resampled is not None:
                    resampled.pts = None  # gaps in the file's times are not kept
                    yield resampled
