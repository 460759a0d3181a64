"""Trains the network that refines what a denoiser makes of speech (audio/speech_refiner.py).

    python scripts/train_speech_refiner.py checkpoints/speech_refiner.safetensors --minutes 8 --speech FOLDER...

Speech and noise are those of train_noise_meter.py, but with voices that differ more, more of them in the background,
heard through `--denoise_audio deep`. Workers make mixtures all the while; batches are drawn from all that are there.
What is learned: the mel that a network hears, the audio code that the demo's network makes of it, and the mouth's
opening that the code tells. It is meant for a GPU, of whose memory it takes some 12 GB beside the clips.
"""

import argparse
import copy
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from noise_benchmark import DEMO, opening_of_codes
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from train_noise_meter import (
    Cast,
    begun,
    decibels,
    in_a_room,
    microphone,
    noise,
    recorded,
    rms,
    synthetic,
    voices,
)

import _path  # noqa: F401
from audio.blocks import resampled
from audio.hparams import DEFAULT, mel_basis
from audio.preprocess import DEEP_RATE, DeepFilter
from audio.speech_refiner import HOP, LEVEL, SpeechRefiner, load_speech_refiner
from audio.voice_activity import RATE
from guided_diffusion.dist_util import DEVICES, choose_device
from guided_diffusion.errors import InputError
from guided_diffusion.script_util import load_checkpoint, load_model
from guided_diffusion.store import replace_when_complete

SECONDS = 4  # of a clip
BATCH = 32
WINDOWS_OF_ONE = 6  # mel windows of a clip whose audio codes are compared
N_JUDGED = 64  # clips, the first ones, that are not learned from
MIN_POOL = 256  # clips that are there before it begins
LEARNING_RATE = 1.5e-3
AVERAGE = 0.999  # of the weights, per step
BABBLE_MORE = 0.45  # share of clips, beside what `noise` makes
PACES = 0.22  # more than the noise meter's: the fewer voices there are, the more they are to differ
MOST_COLOUR = 6.0  # dB
SECONDS_BETWEEN_WORDS = 20.0


# ----------------------------------------------------------------------------------------------------------- examples


class Mixtures(torch.utils.data.IterableDataset):
    """Without end: noisy, denoised and clean sound of a clip, float16 [3, SECONDS * RATE]."""

    def __init__(self, cast: Cast, seed: int) -> None:
        self._cast, self._seed = cast, seed

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = torch.utils.data.get_worker_info()
        if worker:
            torch.set_num_threads(1)
        rng = np.random.default_rng([self._seed, worker.id if worker else 0])
        with closing(DeepFilter()) as process:
            while True:
                noisy, speech = mixture(rng, self._cast, SECONDS * RATE)
                wide = resampled([noisy], RATE, DEEP_RATE)
                denoised = np.concatenate(list(resampled(process.in_time(wide), DEEP_RATE, RATE)))
                yield torch.from_numpy(np.stack([noisy, denoised[: len(noisy)], speech])).half()


def mixture(rng: np.random.Generator, cast: Cast, n: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n] each: speech in noise, about LEVEL, and without it."""
    speech, _ = cast.speech(rng, n)
    if rng.random() < 0.2:
        speech = in_a_room(rng, speech)
    added, kind = (voices(rng, cast, n, 4, 8), "babble") if rng.random() < BABBLE_MORE else noise(rng, cast, n)
    heard = microphone(rng)
    speech, added = heard(speech), heard(added)
    speech, added = speech / (rms(speech) + 1e-9), added / (rms(added) + 1e-9)
    if rng.random() < 0.07:
        ratio = rng.uniform(20, 50)
    else:
        ratio = rng.uniform(3, 16) if kind == "talkers" else rng.triangular(-5, 4, 20)
    noisy = speech + added * decibels(-ratio)
    gain = LEVEL * decibels(rng.uniform(-10, 10)) / rms(noisy)
    return (gain * noisy).astype(np.float32), (gain * speech).astype(np.float32)


class Pool:
    """All clips that were made, on `device`; more of them as time goes by."""

    def __init__(self, mixtures: Mixtures, workers: int, device: torch.device, capacity: int) -> None:
        self.clips = torch.zeros(capacity, 3, SECONDS * RATE, dtype=torch.float16, device=device)
        self.n = 0
        self._is_closed = False
        self._error: BaseException | None = None
        loader = torch.utils.data.DataLoader(mixtures, batch_size=None, num_workers=workers)
        self.filling = threading.Thread(target=self._fill, args=(iter(loader),), daemon=True)
        self.filling.start()

    def _fill(self, coming: Iterator[torch.Tensor]) -> None:
        try:
            for number, clip in enumerate(coming):
                if self._is_closed:
                    break
                place = number if number < N_JUDGED else N_JUDGED + (number - N_JUDGED) % (len(self.clips) - N_JUDGED)
                self.clips[place] = clip
                self.n = max(self.n, place + 1)
        except Exception as error:  # for those who wait for clips
            self._error = error

    def _check(self) -> None:
        if self._error:
            raise RuntimeError("no more mixtures are made") from self._error

    def close(self) -> None:
        self._is_closed = True
        self.filling.join()

    def wait_for(self, n: int) -> None:
        while self.n < min(n, len(self.clips)):
            self._check()
            time.sleep(0.1)

    def batch(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """float32 [size, 3, n] of those that are learned from."""
        self._check()
        chosen = torch.randint(N_JUDGED, self.n, (size,), generator=generator, device=self.clips.device)
        return self.clips[chosen].float()


# ----------------------------------------------------------------------------------------------------------- training


def spectra(sound: torch.Tensor) -> torch.Tensor:
    """float32 [N, ..., n] to complex64 [N, ..., frames, BINS], as `preprocess` makes them."""
    window = torch.sin(torch.pi * (torch.arange(2 * HOP, device=sound.device) + 0.5) / (2 * HOP))
    flat = torch.stft(sound.flatten(0, -2), 2 * HOP, HOP, window=window, pad_mode="constant", return_complex=True)
    return flat.transpose(1, 2).unflatten(0, sound.shape[:-1])


def sound_of(spectrum: torch.Tensor, n: int) -> torch.Tensor:
    window = torch.sin(torch.pi * (torch.arange(2 * HOP, device=spectrum.device) + 0.5) / (2 * HOP))
    return torch.istft(spectrum.transpose(1, 2), 2 * HOP, HOP, window=window, length=n)


class Hearing:
    """What a network hears: the mel of the standard front end, its audio codes of some windows, and what those tell of
    the mouth's opening.

    :param opening: float [code], of `opening_of_codes`.
    """

    def __init__(self, model_path: str, device: torch.device, opening: np.ndarray) -> None:
        self._opening = torch.from_numpy(opening).float().to(device)
        self._basis = torch.from_numpy(mel_basis(DEFAULT)).to(device)
        self._window = torch.hann_window(DEFAULT.n_fft, device=device)
        self._encode = load_model(load_checkpoint(model_path), device).encode_audio

    def mel(self, sound: torch.Tensor) -> torch.Tensor:
        """float32 [N, n] to [N, num_mels, steps] (`audio.melspectrogram`)."""
        sound = torch.cat([sound[:, :1], sound[:, 1:] - DEFAULT.preemphasis * sound[:, :-1]], 1)
        given = torch.stft(sound, DEFAULT.n_fft, DEFAULT.hop_size, window=self._window, pad_mode="constant",
                           return_complex=True)  # fmt: skip
        magnitude = self._basis @ torch.sqrt(given.real**2 + given.imag**2 + 1e-12)
        db = 20 * torch.log10(magnitude.clamp(min=DEFAULT.min_level)) - DEFAULT.ref_level_db
        unit = 1 - db / DEFAULT.min_level_db
        return ((2 * unit - 1) * DEFAULT.max_abs_value).clamp(-DEFAULT.max_abs_value, DEFAULT.max_abs_value)

    def codes(self, mel: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """float32 [N * k, code] of the windows that begin at these steps, int64 [k], in every clip."""
        windows = mel.unfold(2, DEFAULT.window_steps, 1)[:, :, starts].transpose(1, 2).flatten(0, 1)
        return self._encode(windows).flatten(1)

    def opening(self, codes: torch.Tensor) -> torch.Tensor:
        """float32 [N, code] to [N, 1], but for a constant."""
        return codes @ self._opening[:, None]


def errors(
    hearing: Hearing, sound: torch.Tensor, speech: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How far sound is from speech: in the mel, and in the codes and the opening as shares of their variance.

    :param sound, speech: float32 [N, n].
    """
    mel = hearing.mel(sound)
    with torch.no_grad():
        true_mel = hearing.mel(speech)
        true_codes = hearing.codes(true_mel, starts)
    codes = hearing.codes(mel, starts)
    of_codes, of_opening = (
        (one - true).square().mean() / true.var(0).mean().clamp(min=1e-6)
        for one, true in ((codes, true_codes), (hearing.opening(codes), hearing.opening(true_codes)))
    )
    return (mel - true_mel).abs().mean(), of_codes, of_opening


def coloured(spectrum: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Spectra [N, 3, frames, BINS], each clip's with a colour and a level of its own."""
    points = MOST_COLOUR * (2 * torch.rand(len(spectrum), 1, 8, generator=generator, device=spectrum.device) - 1)
    db = nn.functional.interpolate(points, spectrum.shape[-1], mode="linear", align_corners=True)
    return spectrum * (10 ** (db / 20))[:, :, None]


def train(refiner: SpeechRefiner, hearing: Hearing, pool: Pool, minutes: float, seed: int) -> SpeechRefiner:
    """The running mean of its weights after so much time, which begins when MIN_POOL clips are there."""
    device, average = pool.clips.device, copy.deepcopy(refiner)
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=LEARNING_RATE, weight_decay=2e-2, betas=(0.9, 0.98))
    pool.wait_for(MIN_POOL)
    start = said = time.monotonic()
    step = 0
    with tqdm(unit="step", disable=None) as bar:
        while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
            step += 1
            optimizer.param_groups[0]["lr"] = (
                LEARNING_RATE * min(1, step / 200) * (0.01 + 0.5 + 0.5 * math.cos(math.pi * done))
            )
            loss = loss_of(refiner, hearing, pool.batch(BATCH, generator), generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(refiner.parameters(), 1)
            optimizer.step()
            keep = min(AVERAGE, step / (step + 19))
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), refiner.parameters(), strict=True):
                    mean.lerp_(weight, 1 - keep)
            bar.update()
            if time.monotonic() > said + SECONDS_BETWEEN_WORDS and not bar.disable:
                said = time.monotonic()
                bar.set_postfix_str(f"{pool.n} clips; {judged(average, hearing, pool)}")
    print(f"{step} steps, {pool.n} clips; {judged(average, hearing, pool)}")
    return average


def loss_of(
    refiner: SpeechRefiner, hearing: Hearing, clips: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """:param clips: float32 [N, 3, n], as of `Mixtures`."""
    given, n = coloured(spectra(clips), generator), clips.shape[-1]
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=clips.is_cuda):
        shaped = refiner(given[:, 0], given[:, 1])
    last = n // DEFAULT.hop_size - DEFAULT.window_steps
    starts = torch.randint(0, last, (WINDOWS_OF_ONE,), generator=generator, device=clips.device)
    of_mel, of_codes, of_opening = errors(hearing, sound_of(shaped, n), sound_of(given[:, 2], n), starts)
    return of_mel + (of_codes + of_opening) / 2


@torch.inference_mode()
def judged(refiner: SpeechRefiner, hearing: Hearing, pool: Pool) -> str:
    """How far from speech the clips are that are not learned from."""
    n = pool.clips.shape[-1]
    starts = torch.arange(0, n // DEFAULT.hop_size - DEFAULT.window_steps, 8, device=pool.clips.device)
    found: dict[str, list[tuple[float, ...]]] = {"noisy": [], "denoised": [], "refined": []}
    for clips in pool.clips[:N_JUDGED].float().split(BATCH):
        noisy, denoised, speech = clips.unbind(1)
        given = spectra(clips[:, :2])
        sounds = (noisy, denoised, sound_of(refiner(given[:, 0], given[:, 1]), n))
        for own, sound in zip(found.values(), sounds, strict=True):
            own.append(tuple(float(error) for error in errors(hearing, sound, speech, starts)))
    return "; ".join(
        f"{name}: mel {of_mel:.3f}, codes {of_codes:.3f}, opening {of_opening:.3f}"
        for name, (of_mel, of_codes, of_opening) in ((name, np.mean(own, axis=0)) for name, own in found.items())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="safetensors file to write, in float16")
    parser.add_argument("--speech", nargs="*", default=[], help="folders with recordings of one speaker each")
    parser.add_argument("--sentences", type=int, default=1000, help="voices of espeak-ng, three sentences each")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--workers", type=int, default=1, help="processes that make mixtures")
    parser.add_argument("--clips", type=int, default=12000, help="that are kept, 0.4 MB of the device's memory each")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--model_path", default=DEMO, help="checkpoint whose audio codes are to be as of clean speech")
    parser.add_argument("--seed", type=int, default=0, help="of the mixtures, too")
    parser.add_argument("--init", help="weights to go on from")
    arguments = parser.parse_args()
    if arguments.clips <= N_JUDGED:
        raise InputError(f"--clips {arguments.clips}: give more than {N_JUDGED}, which are kept to judge by")
    torch.manual_seed(arguments.seed)
    refiner = begun(arguments.init, load_speech_refiner, SpeechRefiner)
    DeepFilter().close()  # says at once what is not installed, and so does espeak-ng
    opening, _ = opening_of_codes(arguments.model_path)
    device = choose_device(arguments.device)
    people = [recorded(folder) for folder in arguments.speech]
    made = [synthetic(seed) for seed in tqdm(range(arguments.sentences), desc="espeak-ng", disable=None)]
    mixtures = Mixtures(Cast(people, made, PACES), arguments.seed)
    hearing = Hearing(arguments.model_path, device, opening)
    with closing(Pool(mixtures, arguments.workers, device, arguments.clips)) as pool:
        refiner = train(refiner.to(device), hearing, pool, arguments.minutes, arguments.seed)
    with replace_when_complete(Path(arguments.out)) as part:
        save_file({name: weight.half().cpu() for name, weight in refiner.state_dict().items()}, part)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"train_speech_refiner.py: error: {error}", file=sys.stderr)
        sys.exit(2)
