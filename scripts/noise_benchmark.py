"""What noise takes from the lips, and what preprocessing gives back: `python scripts/noise_benchmark.py --help`.

noise     white, pink, babble, hum and music at 20 to 0 dB on three groups of speech: how far the mel moves (its mean
          distance, on the scale of +-4), and how well the opening that the demo's network hears follows the truth in
          each sentence
codes     how well the audio codes of several networks tell the opening of each held-out sentence in noise
painted   the same of the mouths that generate.py paints of them, or of --speech, with --video and generate.py's flags
level     the same speech at -40, -23 and -6 LUFS: how far the mouth opens
people    how well the opening that the demo's network hears in noisy recordings, or sentences in --languages, follows
          the one that it hears in the clean ones, as there is no truth
snr       how far from known signal-to-noise ratios is what audio.assess finds
hour      seconds and peak memory of each part of preprocessing and assessment, for a minute or more of sound

The opening is read from the audio code of a network, checkpoints/demo.safetensors but where told, by a linear
regression that is fitted to clean espeak-ng speech, where the truth is known (as train.py --opening_weight does).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import soundfile
import torch
from make_sample import FPS, HELD_OUT_VOICES, VOICES, mouth_of, synthesize, training_script, viseme_track
from painted import face_boxes, openings, pictures

from _path import ROOT
from audio.assess import assess
from audio.audio import count_windows, load_speech, mel_window, melspectrogram, rms_envelope, speech_mel
from audio.blocks import resampled
from audio.hparams import front_end
from audio.loudness import LoudnessMeter
from audio.noise_level import band_power, speech_to_noise
from audio.preprocess import preprocess
from audio.voice_activity import ONSET, speech_probability
from face_detection.lip_metrics import sync_correlation
from guided_diffusion.errors import InputError
from guided_diffusion.logger import peak_memory
from guided_diffusion.script_util import load_checkpoint, load_model
from guided_diffusion.video_util import open_video

PARTS = ("noise", "codes", "painted", "level", "people", "snr", "hour")
RATE = 16000
LOUDNESS = -23.0
NOISES = ("clean", "white", "pink", "babble", "hum", "music", "voices", "crowd")
METHODS = ("none", "spectral", "deep")
DEMO = str(ROOT / "checkpoints" / "demo.safetensors")
N_FITTED = 20  # sentences
FIRST_HELD_OUT, FIRST_BABBLE = 900000, 500
TALKERS = {"babble": 6, "voices": 2}
TEXTS = {
    "de": ("Der Vater hat gestern Abend ein blaues Boot gemalt.", "Morgen fahren wir mit dem Zug nach Hause."),
    "fr": ("Ma mère a ouvert la fenêtre au-dessus du port.", "Demain nous prenons le train pour voir la famille."),
    "es": ("La vecina compró una mesa blanca en el mercado.", "Mañana vamos a la playa con los niños y el perro."),
    "cmn-latn-pinyin": (
        "wo3 de5 peng2you5 ming2tian1 lai2 bei3jing1.",
        "wo3men5 yi4qi3 qu4 chi1 fan4, ran2hou4 hui2 jia1.",
    ),
    "cs": ("Dnes ráno jsme šli pěšky přes most na druhý břeh řeky.", "Moje teta pracuje v malé pekárně na náměstí."),
    "el": ("Το καλοκαίρι πηγαίνουμε πάντα σε ένα μικρό νησί.", "Ο γείτονάς μου αγόρασε χθες ένα αυτοκίνητο."),
    "ro": ("Bunica mea face în fiecare duminică o plăcintă cu mere.", "Mâine dimineață plecăm la munte cu trenul."),
    "nl": ("De bakker opent zijn winkel elke ochtend om zeven uur.", "Wij wandelen graag langs de oude gracht."),
    "tr": ("Yarın sabah erkenden balık tutmaya gideceğiz.", "Komşumuz bahçesinde güzel güller yetiştiriyor."),
    "hu": ("Holnap reggel korán indulunk a nagymamához.", "A szomszédom minden este zongorázik."),
    "pt": ("O meu avô planta tomates atrás da casa.", "Amanhã vamos de comboio visitar os nossos primos."),
    "da": ("Om sommeren cykler vi ofte ud til stranden.", "Min søster har lige fået et nyt job på et bibliotek."),
}
MEL_LANGUAGES = ("de", "fr", "es", "cmn-latn-pinyin")  # the first sentence of each is one of the groups of `noise`
SECONDS = 1.5  # of each recording
PEOPLE_SECONDS = 8.0  # of each, where they are read one by one


# ------------------------------------------------------------------------------------------------------------- speech


def spoken(text: str, voice: str, rate: int = 165, pitch: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Speech at RATE, and the gap between the inner lips in each frame."""
    sound, own_rate, phonemes = synthesize(text, voice, rate, pitch)
    heard = np.concatenate(list(resampled([sound], own_rate, RATE)))
    mouths = map(mouth_of, viseme_track(phonemes, int(len(heard) / RATE * FPS)))
    return heard, np.array([float((mouth.inner_lower - mouth.inner_upper)[2:7, 1].mean()) for mouth in mouths])


def sentence(seed: int, voices: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    script = training_script(seed, voices)
    return spoken(script.text.split(". ")[0] + ".", script.voice, script.rate, script.pitch)


def in_languages(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Sentences of TEXTS, by language and number."""
    return {f"{name} {n}": spoken(text, name)[0] for name in names for n, text in enumerate(TEXTS[name], 1)}


def at_loudness(sound: np.ndarray, loudness: float = LOUDNESS) -> np.ndarray:
    meter = LoudnessMeter(RATE)
    meter.update(sound)
    return sound * np.float32(10 ** ((loudness - meter.integrated()) / 20))


def groups(recordings: Sequence[str], sentences: int) -> dict[str, np.ndarray]:
    """Speech of a kind in a row, each piece at LOUDNESS.

    :param sentences: number of the held-out ones.
    """
    pieces = {
        "held out": [sound for sound, _ in held_out(sentences)],
        "languages": [spoken(TEXTS[voice][0], voice)[0] for voice in MEL_LANGUAGES],
        "recordings": [load_speech(path)[: int(SECONDS * RATE)] for path in recordings],
    }
    return {name: np.concatenate([at_loudness(piece) for piece in group]) for name, group in pieces.items() if group}


@cache
def held_out(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return sentences_from(FIRST_HELD_OUT, HELD_OUT_VOICES, n)


def sentences_from(first: int, voices: Sequence[str], n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """n that are not a greeting alone, which may be too short to have a loudness."""
    made = (sentence(seed, voices) for seed in count(first))
    return list(islice((one for one in made if len(one[0]) > RATE), n))


def noise(kind: str, n: int, seed: int = 0) -> np.ndarray:
    """float64 [n] of power 1."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / RATE
    if kind == "white":
        made = rng.normal(size=n)
    elif kind == "pink":
        frequency = np.maximum(np.fft.rfftfreq(n, 1 / RATE), 20)
        made = np.fft.irfft(np.fft.rfft(rng.normal(size=n)) / np.sqrt(frequency), n)
    elif kind == "hum":
        made = np.sum([np.sin(2 * np.pi * 50 * k * t + rng.uniform(0, 6)) / k for k in range(1, 21)], axis=0)
    elif kind in TALKERS:
        first = FIRST_BABBLE + seed * TALKERS[kind]
        made = at_once([at_loudness(sound) for sound, _ in sentences_from(first, VOICES, TALKERS[kind])], n, rng)
    elif kind == "music":  # chords of plucked strings on a beat of 0.25 s
        made = np.zeros(n)
        for start in range(0, n, RATE // 4):
            after = t[: min(RATE, n - start)]
            for root in rng.choice([110, 130.8, 164.8, 196, 220, 261.6], 2, replace=False):
                string = np.sum([np.sin(2 * np.pi * root * k * after) / k for k in range(1, 16)], axis=0)
                made[start : start + len(after)] += string * np.exp(-after / 0.25)
    else:
        raise ValueError(f"noise {kind!r}: it is not made alone")
    return made / np.sqrt(np.mean(made**2))


def at_once(voices: Sequence[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [n] of power 1: each voice over and over, from anywhere in it."""
    made = np.sum([np.resize(np.roll(voice, rng.integers(len(voice))), n) for voice in voices], axis=0, dtype=float)
    return made / np.sqrt(np.mean(made**2))


def crowd(pieces: Sequence[np.ndarray], people: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Noise under pieces in a row, float64: under each all of the people who are not the piece itself."""
    rng = np.random.default_rng(seed)
    others = ([one for one in people if one is not piece] for piece in pieces)
    return np.concatenate([at_once(voices, len(piece), rng) for voices, piece in zip(others, pieces, strict=True)])


def mixed(
    speech: np.ndarray, kind: str, snr: float, seed: int = 0, make: Callable[[str, int, int], np.ndarray] = noise
) -> np.ndarray:
    return with_noise(speech, make(kind, len(speech), seed), snr, float(np.mean(speech**2)))


def with_noise(speech: np.ndarray, added: np.ndarray, snr: float, power: float) -> np.ndarray:
    """added: of power 1. power: the speech's."""
    return (speech + added * np.sqrt(power / 10 ** (snr / 10))).astype(np.float32)


def heard(
    sound: np.ndarray, denoise: str = "none", strength: float | None = None, compress: bool = False
) -> np.ndarray:
    return np.concatenate(list(preprocess([sound], RATE, RATE, denoise, strength, compress)))


# ------------------------------------------------------------------------------------------------------------ measures


@cache
def network(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Sound at RATE to the audio codes of a checkpoint's network, float64 [frames, code]."""
    checkpoint = load_checkpoint(path)
    model, hparams = load_model(checkpoint, "cpu"), front_end(checkpoint.config)

    def encode(sound: np.ndarray) -> np.ndarray:
        mel = melspectrogram(np.concatenate(list(resampled([sound], RATE, hparams.sample_rate))), hparams)
        mels = np.stack([mel_window(mel, frame, FPS, hparams) for frame in range(count_windows(mel, FPS, hparams))])
        with torch.inference_mode():
            codes = [model.encode_audio(part).flatten(1) for part in torch.from_numpy(mels).split(64)]
        return torch.cat(codes).double().numpy()

    return encode


@cache
def opening_of_codes(path: str = DEMO) -> tuple[np.ndarray, float]:
    """float64 [code] and a constant: the mouth's opening is a code of a checkpoint's network times the one, plus the
    other. By ridge regression."""
    encode = network(path)
    codes, true_openings = [], []
    for seed in range(N_FITTED):
        sound, opening = sentence(seed, VOICES)
        code = encode(sound)
        codes.append(code)
        true_openings.append(opening[: len(code)])
    x, y = np.concatenate(codes), np.concatenate(true_openings)
    mean, spread = x.mean(axis=0), x.std() + 1e-9
    z = (x - mean) / spread
    weights = np.linalg.solve(z.T @ z + 10 * np.eye(z.shape[1]), z.T @ (y - y.mean())) / spread
    return weights, float(y.mean() - mean @ weights)


def opening_reader(path: str = DEMO) -> Callable[[np.ndarray], np.ndarray]:
    """Sound to the mouth's opening in each frame, told from the codes of a checkpoint's network."""
    encode = network(path)
    weights, constant = opening_of_codes(path)
    return lambda sound: encode(sound) @ weights + constant


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    n = min(len(a), len(b))
    return float(np.corrcoef(a[:n], b[:n])[0, 1])


def piece_starts(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of pieces of sound in a row, which do not end with a frame, per frame: number of the piece, samples since its
    start."""
    starts = np.cumsum([0] + [len(piece) for piece in pieces])
    samples = np.arange(int(starts[-1] / RATE * FPS)) * RATE // FPS
    numbers = np.searchsorted(starts, samples, side="right") - 1
    return numbers, samples - starts[numbers]


def truth(sentences: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the held-out group per frame: number of the sentence, opening."""
    pieces = held_out(sentences)
    numbers, samples = piece_starts([sound for sound, _ in pieces])
    frames = samples * FPS // RATE
    own = [pieces[number][1] for number in numbers]
    return numbers, np.array([one[min(frame, len(one) - 1)] for one, frame in zip(own, frames, strict=True)])


def by_sentence(opening: np.ndarray, sentences: int) -> np.ndarray:
    """r with the truth in each held-out sentence, float64 [sentences]."""
    numbers, true_opening = truth(sentences)
    return by_piece(opening, true_opening, numbers)


def by_piece(opening: np.ndarray, reference: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """r of the two in each piece that they reach, float64 [pieces]; frames without a face (NaN) are left out.

    :param numbers: the piece of each frame. The three may differ in length by frames at the end.
    """
    n = min(map(len, (opening, reference, numbers)))
    opening, numbers = opening[:n], numbers[:n]
    kept = [np.flatnonzero((numbers == number) & np.isfinite(opening)) for number in np.unique(numbers)]
    return np.array([correlation(opening[frames], reference[frames]) for frames in kept])


def mean_and_error(values: np.ndarray, sign: str = "-") -> str:
    """With the standard error over the values."""
    return f"{values.mean():{sign}.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"


def conditions(kinds: Sequence[str], snrs: Sequence[int]) -> Iterator[tuple[str, Callable[..., np.ndarray]]]:
    """The two cells that name each, noise and dB, and what makes it of clean speech, and a `seed` of the noise."""
    for kind in kinds:
        if kind == "clean":
            yield "clean | ", lambda sound, **_: sound
        else:
            yield from ((f"{kind} | {snr}", partial(mixed, kind=kind, snr=snr)) for snr in snrs)


# --------------------------------------------------------------------------------------------------------------- parts


def benchmark_noise(
    kinds: Sequence[str], snrs: Sequence[int], seeds: Sequence[int], recordings: Sequence[str], sentences: int,
    strength: float | None,
) -> None:  # fmt: skip
    """Of each sentence the mean over the seeds."""
    speech = groups(recordings, sentences)
    mels = {name: melspectrogram(sound) for name, sound in speech.items()}
    read = opening_reader()

    def r_of(sounds: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        return np.mean([by_sentence(read(sound["held out"]), sentences) for sound in sounds], axis=0)

    print(f"| noise | dB | method | {' | '.join(f'mel, {name}' for name in speech)} | r | gained |")
    print("|---" * (5 + len(speech)) + "|", flush=True)
    for condition, noisy in conditions(kinds, snrs):
        before = [{name: noisy(sound, seed=seed) for name, sound in speech.items()} for seed in seeds]
        given = r_of(before)
        for method in METHODS:
            after = [{name: heard(sound, method, strength) for name, sound in one.items()} for one in before]
            moved = (np.mean([np.abs(melspectrogram(one[name]) - mels[name]).mean() for one in after]) for name in mels)
            r = given if method == "none" else r_of(after)
            cells = [*(f"{d:.2f}" for d in moved), mean_and_error(r), mean_and_error(r - given, "+")]
            print(f"| {condition} | {method} | {' | '.join(cells)} |", flush=True)


def benchmark_codes(models: Sequence[str], kinds: Sequence[str], snrs: Sequence[int], sentences: int) -> None:
    """The differences are to the first network, over the same sentences."""
    speech = groups([], sentences)["held out"]
    print(f"| noise | dB | {' | '.join([*models, *(f'{model} − first' for model in models[1:])])} |")
    print("|---" * (1 + 2 * len(models)) + "|", flush=True)
    for condition, noisy in conditions(kinds, snrs):
        sound = noisy(speech)
        r = [by_sentence(opening_reader(model)(sound), sentences) for model in models]
        cells = [*(mean_and_error(one) for one in r), *(mean_and_error(one - r[0], "+") for one in r[1:])]
        print(f"| {condition} | {' | '.join(cells)} |", flush=True)


def benchmark_painted(
    video: str, speech: str | None, kinds: Sequence[str], snrs: Sequence[int], methods: Sequence[str], sentences: int,
    flags: Sequence[str],
) -> None:  # fmt: skip
    """The lip-sync measure against the clean sound; r with the truth where it is known."""
    clean = groups([], sentences)["held out"] if speech is None else load_speech(speech)
    boxes, fps = face_boxes(video), open_video(video).fps
    print("| noise | dB | method | sync r | lag, ms | z | r with the truth, of sentences |")
    print("|---" * 7 + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        audio, result, work = (str(Path(folder) / name) for name in ("sound.wav", "result.mp4", "work"))
        for condition, noisy in conditions(kinds, snrs):
            soundfile.write(audio, noisy(clean), RATE, subtype="FLOAT")
            for method in methods:
                frames = pictures(video, audio, result, ["--denoise_audio", method, "--work_dir", work, *flags])
                opening = openings(frames, boxes)
                score = sync_correlation(opening, rms_envelope(clean, RATE, len(opening), fps), fps)
                told = mean_and_error(by_sentence(opening, sentences)) if speech is None else "–"
                sync = f"{score.peak_r:.3f} | {score.lag_ms:.0f} | {score.z:.1f}"
                print(f"| {condition} | {method} | {sync} | {told} |", flush=True)


def benchmark_level(sentences: int) -> None:
    read, speech = opening_reader(), groups([], sentences)["held out"]
    _, true_opening = truth(sentences)
    for compress in (False, True):
        openings = {level: read(heard(at_loudness(speech, level), compress=compress)) for level in (-40, -23, -6)}
        said = ", ".join(f"{level} LUFS {opening.mean():.3f}" for level, opening in openings.items())
        print(f"compress_audio {compress}: mean opening (px) {said}; r to truth "
              + ", ".join(f"{correlation(opening, true_opening):.3f}" for opening in openings.values()))  # fmt: skip


def benchmark_people(
    recordings: Sequence[str], languages: Sequence[str], kinds: Sequence[str], snrs: Sequence[int],
    seeds: Sequence[int], strength: float | None,
) -> None:  # fmt: skip
    """Clean, r is 1 by definition; the share is of what noise took from that. Of each piece the mean over the seeds."""
    people = [at_loudness(load_speech(path)[: int(PEOPLE_SECONDS * RATE)]) for path in recordings]
    pieces = [*people, *map(at_loudness, in_languages(languages).values())]
    numbers, _ = piece_starts(pieces)
    clean, read = np.concatenate(pieces), opening_reader()
    reference = read(clean)
    is_of_people = np.arange(len(pieces)) < len(people)

    def make(kind: str, n: int, seed: int) -> np.ndarray:
        return crowd(pieces, people, seed) if kind == "crowd" else noise(kind, n, seed)

    def r_of(sounds: Iterable[np.ndarray]) -> np.ndarray:
        return np.mean([by_piece(read(sound), reference, numbers) for sound in sounds], axis=0)

    print("| noise | dB | method | r with the clean sound's | gained | given back, % | of recordings | of sentences |")
    print("|---" * 8 + "|", flush=True)
    for condition, noisy in conditions(kinds, snrs):
        sounds = [noisy(clean, seed=seed, make=make) for seed in seeds]
        given = r_of(sounds)
        for method in METHODS:
            r = given if method == "none" else r_of(heard(sound, method, strength) for sound in sounds)
            shares = (given_back(r[which], given[which]) for which in (slice(None), is_of_people, ~is_of_people))
            cells = [mean_and_error(r), mean_and_error(r - given, "+"), *shares]
            print(f"| {condition} | {method} | {' | '.join(cells)} |", flush=True)


def given_back(r: np.ndarray, given: np.ndarray) -> str:
    """In %, of what is lacking in the given r to 1; nothing where nothing is."""
    lost = (1 - given).sum()
    return f"{100 * (r - given).sum() / lost:.0f}" if lost > 1e-9 else ""


def benchmark_snr(recordings: Sequence[str], languages: Sequence[str], seeds: Sequence[int]) -> None:
    """The truth: the clean recording's power while somebody speaks in it over that of the noise that was added."""
    kinds, snrs = ("white", "pink", "hum", "music", "babble", "voices"), (25, 20, 15, 10, 5, 0)
    speeches = {Path(path).stem: load_speech(path) for path in recordings}
    speeches |= in_languages(languages)
    own = {name: found_snr(speech) for name, speech in speeches.items()}
    print("without noise: " + ", ".join(f"{name} {snr:.0f} dB" for name, snr in own.items()))
    print(f"| noise | {' | '.join(map(str, snrs))} | beyond 3 dB |")
    print("|---" * (2 + len(snrs)) + "|")
    for kind in kinds:
        errors = np.array([
            [found_snr(with_noise(speech, added, snr, power)) - snr for snr in snrs]
            for speech, power in ((speech, spoken_power(speech)) for speech in speeches.values())
            for added in (noise(kind, len(speech), seed) for seed in seeds)
        ])  # fmt: skip
        cells = (f"{np.nanmin(column):+.1f} to {np.nanmax(column):+.1f}" for column in errors.T)
        n_beyond = (~(np.abs(errors) <= 3)).sum()  # no speech found counts, too
        print(f"| {kind} | {' | '.join(cells)} | {n_beyond} of {errors.size} |", flush=True)


def spoken_power(speech: np.ndarray) -> float:
    """Mean square while somebody speaks."""
    powers = band_power(speech).sum(axis=1)
    return float(powers[speech_probability([speech])[: len(powers)] >= ONSET].mean())


def found_snr(sound: np.ndarray) -> float:
    """NaN where no speech is heard."""
    snr = speech_to_noise([band_power(sound)])
    return np.nan if snr is None else snr


def benchmark_hour(parts: Sequence[str], seconds: int) -> None:
    """Each in a process of its own, on noisy stereo at 48 kHz."""
    noisy = mixed(groups([], 1)["languages"], "white", 10)
    speech = np.concatenate(list(resampled([noisy], RATE, 48000)))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "sound.wav")
        with soundfile.SoundFile(path, "w", 48000, 2) as file:
            for _ in range(seconds):
                speech = np.roll(speech, -48000)
                file.write(np.stack([speech[:48000]] * 2, axis=1))
        for part in parts:
            command = [sys.executable, __file__, "--measure", part, path]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            print(f"| {part} | {seconds} | {said} |", flush=True)


HEARD: dict[str, Callable[[str], object]] = {
    "mel": speech_mel,
    "spectral": partial(speech_mel, prepare=partial(preprocess, denoise="spectral")),
    "deep": partial(speech_mel, prepare=partial(preprocess, denoise="deep")),
    "compress": partial(speech_mel, prepare=partial(preprocess, compress=True)),
    "assess": assess,
}


def measure(part: str, path: str) -> None:
    start = time.process_time()
    HEARD[part](path)
    print(f"{time.process_time() - start:.1f} | {peak_memory()['rss']:.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--recordings", nargs="*", default=[], help="sound or video files of people who speak")
    parser.add_argument(
        "--languages", nargs="*", default=[], choices=TEXTS, help="two sentences of espeak-ng in each, for people, snr"
    )
    parser.add_argument(
        "--noises", nargs="+", default=NOISES[:6], choices=NOISES,
        help="babble and voices: six and two of espeak-ng; crowd: the other --recordings, for people",
    )  # fmt: skip
    parser.add_argument("--snrs", nargs="+", type=int, default=[20, 10, 5, 0], help="dB")
    parser.add_argument("--sentences", type=int, default=4, help="held-out ones of espeak-ng")
    parser.add_argument("--strength", type=float, help="for noise and people; default as of generate.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the noises, for noise, people, snr")
    parser.add_argument("--models", nargs="+", default=[DEMO], help="checkpoints, for codes")
    parser.add_argument("--video", default=str(ROOT / "samples" / "astronaut.mp4"), help="for painted")
    parser.add_argument("--speech", help="for painted, in place of the held-out sentences")
    parser.add_argument("--denoisers", nargs="+", default=METHODS, choices=METHODS, help="for painted")
    parser.add_argument("--methods", nargs="+", default=list(HEARD), choices=list(HEARD), help="for hour")
    parser.add_argument("--seconds", type=int, default=3600, help="of sound, for hour")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    if flags and arguments.part != "painted":
        parser.error(f"unknown: {' '.join(flags)}")
    if "crowd" in arguments.noises and (arguments.part != "people" or len(arguments.recordings) < 2):
        parser.error("--noises crowd is for people, with two --recordings or more")
    torch.set_num_threads(1)
    if arguments.measure:
        measure(*arguments.measure)
    elif arguments.part == "noise":
        benchmark_noise(
            arguments.noises, arguments.snrs, arguments.seeds, arguments.recordings, arguments.sentences,
            arguments.strength,
        )  # fmt: skip
    elif arguments.part == "codes":
        benchmark_codes(arguments.models, arguments.noises, arguments.snrs, arguments.sentences)
    elif arguments.part == "painted":
        benchmark_painted(
            arguments.video, arguments.speech, arguments.noises, arguments.snrs, arguments.denoisers,
            arguments.sentences, flags,
        )  # fmt: skip
    elif arguments.part == "level":
        benchmark_level(arguments.sentences)
    elif arguments.part == "people":
        if not (arguments.recordings or arguments.languages):
            parser.error("people: give --recordings, --languages or both")
        benchmark_people(
            arguments.recordings, arguments.languages, arguments.noises, arguments.snrs, arguments.seeds,
            arguments.strength,
        )  # fmt: skip
    elif arguments.part == "snr":
        benchmark_snr(arguments.recordings, arguments.languages, arguments.seeds)
    elif arguments.part == "hour":
        benchmark_hour(arguments.methods, arguments.seconds)
    else:
        parser.error(f"choose from {', '.join(PARTS)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"noise_benchmark.py: error: {error}", file=sys.stderr)
        sys.exit(2)
