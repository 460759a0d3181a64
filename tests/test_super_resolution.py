"""Super-resolution of the lips: what may change, which networks are taken, and where their weights come from."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fetch_weights
import super_resolution
from guided_diffusion.errors import InputError
from guided_diffusion.options import Options
from guided_diffusion.store import download
from guided_diffusion.streams import Face, Item, in_batches
from guided_diffusion.tfg_data_util import resize_crop
from super_resolution import LOW_PASS, MODELS, LipSuperResolver, find_weights, lip_region, load_network

WEIGHTS = Path(__file__).parent.parent.parent / "shared" / "weights"


@pytest.fixture(scope="module")
def resolver() -> LipSuperResolver:
    return LipSuperResolver()


class Network(nn.Module):
    """Enlarges plainly, and puts out what is wanted of that."""

    device = torch.device("cpu")
    scale = 2

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.sizes: list[int] = []

    def forward(self, pictures: Tensor) -> Tensor:
        self.sizes.append(len(pictures))
        larger = nn.functional.interpolate(pictures, scale_factor=self.scale, mode="bilinear")
        return self.function(larger).clamp(0, 1)


def with_network(
    resolver: LipSuperResolver, function: Callable[[Tensor], Tensor], is_faithful: bool = False
) -> LipSuperResolver:
    changed = object.__new__(LipSuperResolver)
    changed.__dict__.update(
        resolver.__dict__, network=Network(function), is_faithful=is_faithful, scale=2, strength=1.0, _has_told=False
    )
    return changed


def smooth(size: int = 64, seed: int = 0) -> np.ndarray:
    """A picture with detail of several sizes, far from black and white."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.uniform(0, 1, (n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC) for n in (4, 9, 30)]
    return (0.3 + 0.4 * np.clip(np.mean(layers, axis=0), 0, 1)).astype(np.float32)


def item(crop: np.ndarray | None, height: int = 200, width: int = 150, index: int = 0) -> Item:
    frame = np.zeros((300, 300, 3), np.uint8)
    return Item(frame, Face(index, (20, 20 + height, 30, 30 + width)), crop)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), hidden=st.sampled_from([0.2, 0.5, 0.8]), size=st.sampled_from([64, 96]))
def test_only_the_generated_lip_region_changes(resolver: LipSuperResolver, seed: int, hidden: float, size: int) -> None:
    crop = smooth(size, seed)
    before = crop.copy()
    (enhanced,) = resolver.enhance([item(crop)], hidden)
    plain = resize_crop(crop, 200, 150)
    assert enhanced.crop.dtype == np.float32
    assert enhanced.crop.min() >= 0
    assert enhanced.crop.max() <= 1
    changed = np.abs(enhanced.crop - plain).max(axis=2) > 1e-6
    assert changed.any()
    y1, y2, x1, x2 = lip_region(crop.shape, hidden)
    allowed = np.zeros((size, size), np.uint8)
    allowed[y1:y2, x1:x2] = 1
    assert not (changed & (resize_crop(allowed.astype(np.float32), 200, 150) == 0)).any()
    assert not changed[: int(200 * (1 - hidden))].any()
    assert np.array_equal(crop, before)


@settings(deadline=None, max_examples=10)
@given(gain=st.floats(0.85, 1.15), shift=st.floats(-0.1, 0.1), tint=st.floats(-0.1, 0.1), is_faithful=st.booleans())
def test_colour_and_brightness_stay_the_crops(
    resolver: LipSuperResolver, gain: float, shift: float, tint: float, is_faithful: bool
) -> None:
    """A network that brightens or tints, each frame otherwise, would make the mouth flicker."""
    crop = smooth()
    offset = torch.tensor([shift + tint, shift, shift - tint]).view(1, 3, 1, 1)
    changed = with_network(resolver, lambda picture: picture * gain + offset, is_faithful)
    (detail,) = changed.lip_detail(crop[None], lip_region(crop.shape, 0.5))
    low = cv2.GaussianBlur(detail, (0, 0), 2 * LOW_PASS)
    assert np.abs(low).max() < 1 / 255
    assert np.abs(detail.mean(axis=(0, 1))).max() < 0.1 / 255


def test_detail_of_the_network_is_added_as_far_as_wanted(resolver: LipSuperResolver) -> None:
    crop = smooth()
    region = lip_region(crop.shape, 0.5)
    grid = torch.from_numpy(np.indices((2 * (region[1] - region[0]), 2 * (region[3] - region[2]))).sum(0) % 2 * 0.1)
    full = with_network(resolver, lambda picture: picture + grid)
    (detail,) = full.lip_detail(crop[None], region)
    y, x = region[0] + region[1], region[2] + region[3]  # the middle, at twice the size
    assert np.abs(detail[y, x : x + 2, 0] - detail[y, x + 1 : x + 3, 0]) == pytest.approx(0.1, abs=0.01)
    full.strength = 0.5
    assert np.allclose(full.lip_detail(crop[None], region)[0], 0.5 * detail)
    enhanced = full.enhance_lip_region(crop, region)
    assert np.allclose(enhanced, np.clip(resize_crop(crop, 128, 128) + 0.5 * detail, 0, 1))


@pytest.mark.parametrize(("is_faithful", "least", "most"), [(True, 0.08, 0.11), (False, 0, 0.02)])
def test_only_a_faithful_network_changes_what_the_crop_itself_shows(
    resolver: LipSuperResolver, is_faithful: bool, least: float, most: float
) -> None:
    """Others would paint another mouth: here waves of six of the crop's pixels."""
    crop = smooth()
    waves = with_network(resolver, lambda p: p + 0.1 * torch.sin(torch.arange(p.shape[3]) * np.pi / 6), is_faithful)
    y1, y2, x1, x2 = lip_region(crop.shape, 0.5)
    (detail,) = waves.lip_detail(crop[None], (y1, y2, x1, x2))
    middle = detail[y1 + y2 - 4 : y1 + y2 + 4, x1 + x2 - 12 : x1 + x2 + 12]
    assert least <= np.abs(middle).max() <= most


def test_what_networks_may_change() -> None:
    assert LipSuperResolver("span_x2").is_faithful
    assert not LipSuperResolver(Options.sr_model).is_faithful
    assert not LipSuperResolver(str(find_weights("span_x2"))).is_faithful


def test_frames_of_a_size_go_through_the_network_together(resolver: LipSuperResolver) -> None:
    counting = with_network(resolver, lambda picture: picture)
    items = [item(smooth(64)), item(smooth(64)), item(None), item(smooth(96)), item(smooth(96), 90, 90)]
    done = list(in_batches(partial(counting.enhance, face_hide_percentage=0.5), 8)(iter(items)))
    assert counting.network.sizes == [2, 1]
    assert [None if i.crop is None else i.crop.shape[:2] for i in done] == [
        (200, 150), (200, 150), None, (200, 150), (96, 96),
    ]  # fmt: skip


def test_a_batch_gives_each_frame_what_it_gets_alone(resolver: LipSuperResolver) -> None:
    items = [item(smooth(64, seed), index=seed) for seed in range(3)]
    together = resolver.enhance(items, 0.5)
    for one, enhanced in zip(items, together, strict=True):
        (alone,) = resolver.enhance([one], 0.5)
        assert np.abs(alone.crop - enhanced.crop).max() < 1e-5


def test_small_faces_stay_as_they_are_and_that_is_said_once(
    resolver: LipSuperResolver, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = with_network(resolver, lambda picture: picture)
    small = [item(smooth(64), 64, 60), item(smooth(64), 40, 30)]
    assert all(a is b for a, b in zip(fresh.enhance(small, 0.5), small, strict=True))
    fresh.enhance(small, 0.5)
    assert capsys.readouterr().err.count("not larger than the network's crop") == 1


def test_merged_convolutions_are_what_spandrel_computes(tmp_path: Path) -> None:
    """Its own SPAN merges the branches of training at every call; a file may hold the merged ones alone."""
    from spandrel.architectures.SPAN import SPAN

    torch.manual_seed(0)
    network = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()
    picture = 0.2 + 0.6 * torch.rand(1, 3, 9, 13)
    with torch.inference_mode():
        expected = network(picture).clamp(0, 1)
    whole, compact = tmp_path / "whole.pth", tmp_path / "compact.pth"
    weights = network.state_dict()
    torch.save({"params": weights}, whole)
    torch.save({k: v for k, v in weights.items() if ".sk." not in k and ".conv." not in k}, compact)
    for path in (whole, compact):
        loaded = load_network(str(path))
        assert loaded.scale == 2
        assert not any("sk" in name for name, _ in loaded.model.named_modules())
        assert torch.allclose(loaded(picture), expected, atol=1e-5)


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("span_x2", "spanx2_ch48.safetensors"),
        ("span_x4", "spanx4_ch48.safetensors"),
        ("realesr-general-wdn-x4v3", "realesr-general-wdn-x4v3.pth"),
    ],
)
def test_the_files_that_come_with_the_project_are_the_networks_that_were_converted(model: str, file: str) -> None:
    official = load_network(str(WEIGHTS / file))
    picture = torch.rand(1, 3, 20, 30)
    assert torch.equal(LipSuperResolver(model).network(picture), official(picture))


# ---------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("model", [name for name, weights in MODELS.items() if not weights.url])
def test_what_comes_with_the_project_is_there(model: str) -> None:
    assert find_weights(model).is_file()


def test_the_default_needs_no_download() -> None:
    assert not MODELS[Options.sr_model].url


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose from realesr-general-wdn-x4v3, span_x2, span_x4"):
        find_weights(str(tmp_path / "missing.pth"))
    noise, also_noise = tmp_path / "noise.pth", tmp_path / "noise.safetensors"
    for path in (noise, also_noise):
        path.write_bytes(b"noise")
    foreign = tmp_path / "foreign.pth"
    torch.save({"some.weight": torch.zeros(3)}, foreign)
    for path in (noise, also_noise, foreign):
        with pytest.raises(InputError, match=f"{path.name}: not the weights of a network"):
            load_network(str(path))
    same_size = tmp_path / "same_size.pth"
    from spandrel.architectures.SPAN import SPAN

    torch.save(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=1).state_dict(), same_size)
    with pytest.raises(InputError, match="scale 1 from 3 to 3 channels; give one that enlarges"):
        load_network(str(same_size))


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return (tmp_path / "sprung").touch, ()

    path = tmp_path / "trap.pth"
    torch.save(Trap(), path)
    with pytest.raises(InputError, match="not the weights"):
        load_network(str(path))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("model", MODELS)
def test_without_spandrel_the_error_says_how_to_install_it(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so before 67 MB are downloaded."""
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.setattr(super_resolution, "download", lambda *_: pytest.fail("downloads"))
    with pytest.raises(InputError, match="pip install spandrel"):
        LipSuperResolver(model)


def test_a_damaged_file_is_refused_with_both_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(super_resolution, "CHECKPOINTS", tmp_path)
    (tmp_path / "RealESRGAN_x4plus.pth").write_bytes(b"damaged")
    with pytest.raises(InputError, match=f"{sha256(b'damaged').hexdigest()}, not {MODELS['RealESRGAN_x4plus'].sha256}"):
        find_weights("RealESRGAN_x4plus")


CONTENT = bytes(range(256)) * 400


@contextmanager
def server(knows_ranges: bool = True, breaks_off_after: int | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """CONTENT at a URL of this machine, and the ranges that were asked for."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            start = int(asked[-1].removeprefix("bytes=").rstrip("-")) if knows_ranges and asked[-1] else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if knows_ranges else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start : breaks_off_after and start + breaks_off_after])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/weights.pth", asked
        http.shutdown()


def digest(content: bytes = CONTENT) -> str:
    return sha256(content).hexdigest()


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_an_interrupted_download_goes_on(tmp_path: Path, knows_ranges: bool) -> None:
    path = tmp_path / "folder" / "weights.pth"
    with server(breaks_off_after=1000) as (url, _), pytest.raises(InputError, match="ended early"):
        download(url, path, digest())
    assert not path.exists()
    with server(knows_ranges) as (url, asked):
        download(url, path, digest())
    assert asked == ["bytes=1000-"]
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["weights.pth"]


def test_a_wrong_download_is_refused_with_both_hashes_and_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with server() as (url, _), pytest.raises(InputError, match=f"{digest()}, not {digest(b'meant')}"):
        download(url, path, digest(b"meant"))
    assert not list(tmp_path.iterdir())


def test_a_beginning_that_is_longer_than_the_file_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    (tmp_path / "weights.pth.part").write_bytes(b"x" * (len(CONTENT) + 1))
    with server() as (url, _):
        with pytest.raises(InputError, match="416"):
            download(url, path, digest())
        download(url, path, digest())
    assert path.read_bytes() == CONTENT


def test_without_a_server_the_error_names_the_address(tmp_path: Path) -> None:
    with server() as (url, _):
        pass
    with pytest.raises(InputError, match=f"{url} could not be fetched"):
        download(url, tmp_path / "weights.pth", digest())


def test_weights_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(super_resolution, "CHECKPOINTS", tmp_path)
    with server() as (url, asked):
        monkeypatch.setitem(MODELS, "some", super_resolution.Weights("some.pth", digest(), url))
        assert find_weights("some") == find_weights("some") == tmp_path / "some.pth"
    assert len(asked) == 1


def test_weights_are_fetched_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(super_resolution, "CHECKPOINTS", tmp_path)
    with server() as (url, _):
        monkeypatch.setitem(MODELS, "some", super_resolution.Weights("some.pth", digest(), url))
        monkeypatch.setitem(MODELS, "other", super_resolution.Weights("other.pth", digest(b"meant"), url))
        assert fetch_weights.main(["some"]) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / "some.pth")]
        assert fetch_weights.main(["other"]) == 2
    assert "fetch_weights.py: error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fetch_weights.main(["none"])


def test_without_write_access_weights_go_to_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(super_resolution, "CHECKPOINTS", tmp_path / "not there")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with server() as (url, asked):
        monkeypatch.setitem(MODELS, "some", super_resolution.Weights("some.pth", digest(), url))
        assert find_weights("some") == find_weights("some") == tmp_path / "cache" / "hub" / "checkpoints" / "some.pth"
    assert len(asked) == 1

