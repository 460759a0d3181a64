"""Speed and memory, each beside a baseline of the same run: `python scripts/benchmark.py --help`.

media     milliseconds per frame for decoding, face detection, pasting and encoding
composite milliseconds per 590 x 590 frame for pasting, blending, sharpening, lip masks and their landmarks, as shares
          of the time that sampling a frame takes at the paper's size and in 25 steps
super_resolution
          milliseconds per frame and GFLOP of --super_resolution for crops of 64 and 128 px, lip regions of two sizes, 1
          and 2 threads, with the networks that come with the project and the --sr_models given
pipeline  milliseconds per frame of pass 2 with stubs of 10 and 30 ms a frame for a GPU's sampler, all in one thread and
          as streams; how long the stub was busy meanwhile, and the part that most time went into
memory    peak resident size of a whole run with a stub for the sampler, for 6 and 60 s of one clip and 1 and 60 minutes
          of sound
resolution  GFLOP, peak resident size, and seconds per image and step of the paper's network (random weights) at 64, 128
          and 256 px, in batches of 1 to 32 as far as LARGEST_MIB allows
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

import _path  # noqa: F401
import generate
from audio.hparams import front_end
from benchmark_sampling import our_loop, random_batch, random_weights
from face_detection.api import FaceAlignment
from face_detection.playback import Playback
from face_detection.tracks import fixed_track
from guided_diffusion.dist_util import Ranks
from guided_diffusion.errors import InputError
from guided_diffusion.logger import Timings, peak_memory, versions
from guided_diffusion.sampling import Crops, SampleBatch, plan_batches
from guided_diffusion.script_util import (
    Checkpoint,
    ModelConfig,
    create_gaussian_diffusion,
    create_model,
    load_model,
)
from guided_diffusion.streams import Box, Face, Item, Stage
from guided_diffusion.tfg_data_util import resize_crop
from guided_diffusion.unet import TFGModel
from guided_diffusion.video_util import VideoWriter, open_video
from post_processing import LipAlpha, generated_alpha, paste_crop, paste_stage, sharpen
from super_resolution import MODELS, SR_BATCH, LipSuperResolver, add_at_box, lip_region

PARTS = ("media", "composite", "super_resolution", "resolution", "pipeline", "memory")
HEIGHT, WIDTH, FPS = 1920, 1080, 25
SECONDS_OF_VIDEO_AND_SOUND = ((6, 60), (60, 60), (6, 3600))
PIPELINE_FRAMES = 200  # x264 looks ahead by 40, whose encoding comes at the end and beside nothing
STUB_MS = (10, 30)
X264_PRESETS = ("medium", "superfast")
SIZES, BATCHES = (64, 128, 256), (1, 2, 4, 8, 16, 32)
LARGEST_MIB = 8192  # of memory for a batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument(
        "--video", nargs="+",
        help="clips with a face, of which only pipeline takes more than the first; default one made of NASA's portrait",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=4, help="images per batch")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is printed")
    parser.add_argument("--sr_models", nargs="*", default=[], metavar="NAME|FILE", help="more for super_resolution")
    parser.add_argument("--measure_memory", nargs=2, metavar=("VIDEO", "AUDIO"), help=argparse.SUPPRESS)
    parser.add_argument("--measure_resolution", nargs=2, type=int, metavar=("SIZE", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        print(measure_memory(*arguments.measure_memory))
        return 0
    if arguments.measure_resolution:
        print(*measure_resolution(*arguments.measure_resolution))
        return 0
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()), f"{torch.get_num_threads()} threads")
    if "composite" in arguments.parts:
        benchmark_composite(arguments.batch)
    if "super_resolution" in arguments.parts:
        shipped = [name for name, weights in MODELS.items() if not weights.url]
        benchmark_super_resolution([*shipped, *arguments.sr_models], arguments.rounds)
    if "resolution" in arguments.parts:
        benchmark_resolution()
    with tempfile.TemporaryDirectory() as folder:
        if {"media", "memory", "pipeline"} & set(arguments.parts):
            given = arguments.video or []
            clips = [list(islice(open_video(path, FPS).frames(), 150)) for path in given] or [portrait()]
            frames = clips[0]
        if "pipeline" in arguments.parts:
            benchmark_pipeline(clips if given else [square(frames), frames], Path(folder))
        if "media" in arguments.parts:
            benchmark_media(frames, Path(folder))
        if "memory" in arguments.parts:
            benchmark_memory(frames, Path(folder))
    return 0


# ------------------------------------------------------------------------------------------------------------ media


def portrait() -> list[np.ndarray]:
    """Two seconds of a swaying face of 330 px in a frame of 1080 x 1920, with camera noise."""
    import cv2
    from skimage import data

    rng = np.random.default_rng(0)
    picture = cv2.resize(data.astronaut(), (HEIGHT, HEIGHT))
    frames = []
    for k in range(2 * FPS):
        x = int(300 + 20 * np.sin(k / 8))
        noise = rng.normal(0, 2, (HEIGHT, WIDTH, 1))
        frames.append(np.clip(picture[:, x : x + WIDTH] + noise, 0, 255).astype(np.uint8))
    return frames


def benchmark_media(frames: list[np.ndarray], folder: Path) -> None:
    height, width = frames[0].shape[:2]
    path = str(folder / "media.mp4")
    ms = {"encode": 1000 * timed(partial(write, path, frames)) / len(frames)}
    ms["decode"] = 1000 * timed(lambda: sum(1 for _ in open_video(path).frames())) / len(frames)
    detector = FaceAlignment("dlib")
    some = frames[::5]
    boxes: list[object] = []
    ms["detect (dlib)"] = 1000 * timed(lambda: boxes.extend(detector.get_detections_for_batch(some))) / len(some)
    crop = np.zeros((128, 128, 3), np.uint8)
    box = (height // 4, height // 2, width // 4, width // 2)
    ms["paste"] = 1000 * timed(lambda: [paste_crop(frame, crop, box) for frame in frames]) / len(frames)
    found = sum(box is not None for box in boxes)
    print(f"\nmedia, {width} x {height}, {len(frames)} frames, faces in {found} of {len(some)}")
    for name, value in ms.items():
        print(f"  {name}: {value:.1f} ms per frame")


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def write(path: str, frames: Sequence[np.ndarray] | Iterator[np.ndarray]) -> None:
    frames = iter(frames)
    first = next(frames)
    with VideoWriter(path, source=(first.shape[1], first.shape[0]), fps=FPS) as writer:
        writer.write(first)
        for frame in frames:
            writer.write(frame)


# -------------------------------------------------------------------------------------------------------- composite


def benchmark_composite(n: int) -> None:
    """NASA's portrait, enlarged until its face is 330 px high, with a crop of the paper's size and dlib's landmarks."""
    import cv2
    from skimage import data

    frame = np.ascontiguousarray(cv2.resize(data.astronaut(), (1300, 1300))[:590, 280:870])
    detector = FaceAlignment("dlib")
    (detection, *_), = detector.detect([frame])
    x1, y1, x2, y2 = (int(v) for v in detection.box)
    size = ModelConfig().image_size
    crop = cv2.resize(frame[y1:y2, x1:x2], (size, size))
    face = Face(0, (y1, y2, x1, x2), detection.landmarks)
    at_box = cv2.resize(crop, (x2 - x1, y2 - y1))
    picture = crop.astype(np.float32) / 255
    item = Item(frame, face, picture, crop_size=size, lips=detector.get_lip_landmarks(at_box))
    generated = partial(generated_alpha, face_hide_percentage=0.5, blur_kernel_size=15)
    mask = LipAlpha(1.2, True, generated)
    of_box = at_box.shape[:2]

    def run(stage: Stage) -> list[Item]:
        return list(stage(iter([item])))

    ms = {
        "plain paste": milliseconds(lambda: run(paste_stage())),
        "blending (with the paste)": milliseconds(lambda: run(paste_stage(generated))),
        "sharpening": milliseconds(lambda: sharpen(picture, face, 0.5, 0.5)),
        "lip mask alone": milliseconds(lambda: mask(item, of_box)) - milliseconds(lambda: generated(item, of_box)),
        "landmarks of a generated crop (dlib)": milliseconds(lambda: detector.get_lip_landmarks(at_box)),
    }
    sampling = 1000 * 25 * seconds_per_image(n)
    print(f"\ncomposite, 590 x 590, box {x2 - x1} x {y2 - y1}, crop {size} px; sampling: {sampling:.0f} ms per frame")
    for name, value in ms.items():
        print(f"  {name}: {value:.2f} ms per frame, {100 * value / sampling:.3f} % of sampling")


def seconds_per_image(n: int) -> float:
    """Of one sampling step at the paper's size, in a batch of n images."""
    config = ModelConfig()
    run = partial(our_loop, random_network(config), create_gaussian_diffusion(config, "ddim2"), random_batch(config, n))
    run()
    return timed(run) / n / 2


def random_network(config: ModelConfig) -> TFGModel:
    """As generate.py loads it."""
    return load_model(Checkpoint(config, random_weights(create_model(config)).state_dict(), "benchmark"), "cpu")


def milliseconds(function: Callable[[], object], calls: int = 30) -> float:
    """The median of so many calls, after one that warms up."""
    function()
    return 1000 * statistics.median(timed(function) for _ in range(calls))


# ------------------------------------------------------------------------------------------------- super-resolution


def benchmark_super_resolution(models: Sequence[str], rounds: int) -> None:
    """A batch of random crops for a box of 326 x 242; the lip region, and a half of the crop that is generated."""
    from torch.utils.flop_counter import FlopCounterMode

    print(f"\nsuper_resolution, batches of {SR_BATCH}, box 326 x 242, least of {rounds}")
    face = Face(0, (0, 326, 0, 242))
    for model in models:
        resolver = LipSuperResolver(model)
        for size in (64, 128):
            crops = np.random.default_rng(0).random((SR_BATCH, size, size, 3), dtype=np.float32)
            regions = {"lips": lip_region(crops.shape[1:], 0.5), "lower half": (size // 2, size, 0, size)}
            for name, region in regions.items():

                def run(resolver: LipSuperResolver = resolver, crops: np.ndarray = crops, region: Box = region) -> None:
                    for crop, detail in zip(crops, resolver.lip_detail(crops, region), strict=True):
                        add_at_box(Item(crop, face, crop), detail)

                with FlopCounterMode(display=False) as counter:
                    run()
                y1, y2, x1, x2 = region
                ms = {threads: 1000 * with_threads(threads, run, rounds) / SR_BATCH for threads in (1, 2)}
                print(
                    f"  {Path(model).stem}, {size} px, {name} {y2 - y1} x {x2 - x1}: "
                    f"{counter.get_total_flops() / SR_BATCH / 1e9:.1f} GFLOP, "
                    + ", ".join(f"{value:.1f} ms on {threads} threads" for threads, value in ms.items())
                )


def with_threads(n: int, function: Callable[[], object], rounds: int) -> float:
    """The least seconds of so many calls in n threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    seconds = min(timed(function) for _ in range(rounds))
    torch.set_num_threads(before)
    return seconds


# --------------------------------------------------------------------------------------------------------- pipeline


def square(frames: list[np.ndarray]) -> list[np.ndarray]:
    """590 x 590 around the face of `portrait`."""
    import cv2

    return [cv2.resize(frame[: WIDTH * 5 // 6, WIDTH // 12 : WIDTH - WIDTH // 12], (590, 590)) for frame in frames]


def benchmark_pipeline(clips: Sequence[list[np.ndarray]], folder: Path) -> None:
    """Pass 2 without --save_orig: decoding, sampling, the plain paste and encoding with sound."""
    print("\npipeline, plain paste, no --save_orig")
    audio = str(folder / "pipeline.wav")
    write_noise(audio, 10)
    n = PIPELINE_FRAMES
    for number, frames in enumerate(clips):
        video = str(folder / f"pipeline{number}.mp4")
        write(video, islice(cycle(frames + frames[::-1]), n))
        (corners,) = FaceAlignment("dlib").get_detections_for_batch(frames[:1])
        if corners is None:
            raise InputError(f"--video: clip {number + 1} shows no face in its first frame")
        x1, y1, x2, y2 = corners
        for preset in X264_PRESETS:
            for stub_ms in STUB_MS:
                run = partial(second_pass, video, audio, (y1, y2, x1, x2), stub_ms, preset)
                with patch.object(generate, "ahead", lambda items, _n: items):
                    one_thread, _ = run()
                streams, timings = run()
                print(
                    f"  {frames[0].shape[1]} x {frames[0].shape[0]}, {preset}, stub of {stub_ms} ms: "
                    f"{1000 * one_thread / n:.1f} ms per frame in one thread, {1000 * streams / n:.1f} as streams "
                    f"({one_thread / streams:.2f} times as fast); stub busy {stub_ms * n / streams / 10:.0f} %; "
                    f"most time in {max(timings.seconds, key=timings.seconds.__getitem__)}: "
                    + ", ".join(f"{part} {1000 * seconds / n:.1f}" for part, seconds in timings.seconds.items())
                )


def second_pass(video: str, audio: str, box: Box, stub_ms: float, preset: str) -> tuple[float, Timings]:
    """Seconds of a second pass over a face that stays in its box, and where they went."""
    options = generate.Options(
        video_path=video, audio_path=audio, out_path=f"{video}.out.mp4", model_path="stub", is_voxceleb2=False,
        face_detector="dlib", save_orig=False, x264_preset=preset,
    )  # fmt: skip
    config, timings, job = ModelConfig(), Timings(), generate.single_job(options)

    def stub(batch: SampleBatch) -> Crops:
        time.sleep(stub_ms * len(batch.crops) / 1000)  # as a GPU does, it leaves the interpreter to others
        return partial(resized, batch, config.image_size)

    clip = generate.open_clip(job, options, front_end(config))
    playback = Playback(clip.video, fixed_track(PIPELINE_FRAMES, box), clip.n_windows)
    size = 2 * config.nframes
    batches = plan_batches(playback.n_output, size, playback.shot_starts)
    sampler = generate.timed(stub, timings)
    stages = generate.build_stages(options, None)

    def run() -> None:
        items = generate.sampled_items(batches, clip, playback, sampler, options, size, timings)
        with closing(generate.ahead(items, size)) as sampled:
            stream = timings.iterate(None, sampled)
            generate.write_result(job, clip.video, stream, playback.n_output, stages, options, timings)

    return timed(run), timings


def resized(batch: SampleBatch, size: int) -> np.ndarray:
    return np.stack([resize_crop(crop, size, size) for crop in batch.crops])


# ----------------------------------------------------------------------------------------------------------- memory


def benchmark_memory(frames: list[np.ndarray], folder: Path) -> None:
    print("\nmemory, whole run with a stub sampler, the video cut at its end")
    for video_seconds, sound_seconds in SECONDS_OF_VIDEO_AND_SOUND:
        video, audio = str(folder / f"{video_seconds}.mp4"), str(folder / f"{sound_seconds}.wav")
        write(video, islice(cycle(frames + frames[::-1]), video_seconds * FPS))
        write_noise(audio, sound_seconds)
        command = [sys.executable, str(Path(__file__)), "--measure_memory", video, audio]
        rss = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        print(f"  {video_seconds} s of video, {sound_seconds} s of sound: {rss:.0f} MiB")


def write_noise(path: str, seconds: int, rate: int = 48000) -> None:
    """Stereo, written second by second."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 2) as file:
        for _ in range(seconds):
            file.write(rng.normal(0, 0.1, (rate, 2)))


def measure_memory(video: str, audio: str) -> float:
    """Peak MiB of a run of generate.py's passes whose sampler gives its crops back."""
    options = generate.Options(
        video_path=video, audio_path=audio, out_path=f"{video}.out.mp4", model_path="stub", is_voxceleb2=False,
        face_detector="dlib", sampling_seed=7, save_orig=False,
    )  # fmt: skip

    config = ModelConfig()

    def stub(batch: SampleBatch) -> Crops:
        return partial(resized, batch, config.image_size)

    tools = generate.Tools(config, stub, 2 * config.nframes, FaceAlignment("dlib"), {}, {}, Ranks())
    generate.lip_sync(generate.single_job(options), options, tools)
    return peak_memory()["rss"]


# ------------------------------------------------------------------------------------------------------- resolution


def benchmark_resolution() -> None:
    print("\nresolution, the paper's network, one step, a process for each line")
    for size in SIZES:
        print(f"  {size} px: {gflop(size):.0f} GFLOP per image and step")
        before = 0.0
        for n in BATCHES:
            command = [sys.executable, str(Path(__file__)), "--measure_resolution", str(size), str(n)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            mib, seconds = map(float, said)
            print(f"  {size} px, batch of {n}: {mib:.0f} MiB, {seconds:.3f} s per image and step", flush=True)
            if mib + 2 * (mib - before) > LARGEST_MIB and n != BATCHES[-1]:
                print(f"  {size} px, larger batches: left out, they would take more than {LARGEST_MIB} MiB")
                break
            before = mib


def gflop(size: int) -> float:
    """Of one image in one step, with its audio; counted, not run."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        image = torch.zeros(1, 3, size, size)
        model = create_model(ModelConfig(image_size=size))
        model(image, torch.zeros(1), image, image, torch.zeros(1, 80, 16), image[:, :1])
    return counter.get_total_flops() / 1e9


def measure_resolution(size: int, n: int) -> tuple[float, float]:
    """Peak MiB of this process, and seconds per image of a step."""
    config = ModelConfig(image_size=size)
    model, diffusion = random_network(config), create_gaussian_diffusion(config, "ddim1")
    seconds = timed(partial(our_loop, model, diffusion, random_batch(config, n)))
    return peak_memory()["rss"], seconds / n


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"benchmark.py: error: {error}", file=sys.stderr)
        sys.exit(2)
