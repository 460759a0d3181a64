"""Detectors and landmarks. The networks run with random stand-in weights: their own are a download."""

import os
import pickle
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest
import torch

from face_detection.api import (
    DETECTORS,
    SAME_PERSON,
    WEIGHT_FILES,
    Detection,
    FaceAlignment,
    FaceIdentity,
    integer_corners,
)
from guided_diffusion.errors import InputError
from guided_diffusion.video_util import open_video

skimage_data = pytest.importorskip("skimage.data")
pytest.importorskip("face_alignment")

CLIPS = Path(__file__).parents[2] / "shared" / "clips"
BGR_MEANS = np.array([104, 117, 123], dtype=np.float32)
NETWORKS = tuple(name for name in DETECTORS if name != "dlib")


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, empty, in a world without a network. Its name has a space and an umlaut."""

    def no_network(*_args: object, **_kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "Gewichte für später"))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return skimage_data.astronaut()


@pytest.fixture(scope="module")
def dlib_faces() -> FaceAlignment:
    pytest.importorskip("dlib")
    return FaceAlignment("dlib")


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights cannot have the hash that the file's name promises."""
    monkeypatch.setattr("face_detection.api.file_digest", lambda path: torch.hub.HASH_REGEX.search(path)[1])


def save_stand_in(name: str, folder: Path) -> None:
    """Random weights under the file names that the package looks for."""
    torch.manual_seed(0)
    first = folder / WEIGHT_FILES[name][0]
    if name == "sfd":
        from face_alignment.detection.sfd.net_s3fd import s3fd

        torch.save(s3fd().state_dict(), first)
    elif name == "blazeface":
        from face_alignment.detection.blazeface.net_blazeface import BlazeFace

        weights = BlazeFace().state_dict()
        for classifier in ("classifier_8", "classifier_16"):  # no faces: merging random boxes may never end
            weights[f"{classifier}.bias"].fill_(-100)
        torch.save(weights, first)
        np.save(folder / WEIGHT_FILES[name][1], np.random.default_rng(0).random((896, 4), dtype=np.float32))
    elif name == "retinaface":
        from face_alignment.detection.retinaface.net_retinaface import RetinaFace, cfg_mnet

        torch.save(RetinaFace(cfg=cfg_mnet).state_dict(), first)


def test_unknown_detector_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"--face_detector mtcnn.*sfd, blazeface, yunet, retinaface, dlib"):
        FaceAlignment("mtcnn")


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_that_cannot_be_downloaded_are_named(name: str, weights_folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        FaceAlignment(name)
    message = str(caught.value)
    assert all(file in message for file in WEIGHT_FILES[name])
    assert str(weights_folder) in message
    assert "--face_detector dlib" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, b"<html>blocked</html>") for name in NETWORKS),  # a proxy's error page under the weights' name
        ("blazeface", pickle.dumps([1, 2], protocol=2)),
        ("retinaface", pickle.dumps([1, 2], protocol=2)),
    ],
)
@pytest.mark.usefixtures("any_checksum")
def test_unreadable_weights_are_an_input_error(name: str, content: bytes, weights_folder: Path) -> None:
    for file in WEIGHT_FILES[name]:
        (weights_folder / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        FaceAlignment(name)
    assert WEIGHT_FILES[name][0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["sfd", "landmarks"])
def test_weights_with_another_hash_are_refused(
    which: str, weights_folder: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A readable file, but not the one that its name says: s3fd-619a316812.pth."""
    if which == "landmarks":
        make_small_gpu(monkeypatch, capacity=1)
    path = weights_folder / WEIGHT_FILES[which][0]
    save_stand_in("sfd", weights_folder)
    (weights_folder / WEIGHT_FILES["sfd"][0]).rename(path)
    with pytest.raises(InputError) as caught:
        FaceAlignment("sfd").get_lip_landmarks(image)
    assert str(caught.value).startswith(f"{path}: its SHA-256 does not begin with")
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "file", [file for files in WEIGHT_FILES.values() for file in files if not file.endswith(".onnx")]
)
@pytest.mark.parametrize("moment", ["detection", "landmarks"])
@pytest.mark.usefixtures("any_checksum")
def test_code_in_a_weight_file_is_not_run(
    file: str, moment: str, weights_folder: Path, tmp_path: Path, image: np.ndarray
) -> None:
    """The package builds its detector a second time with the landmark network, and must not be less careful then."""
    name = next((name for name in NETWORKS if file in WEIGHT_FILES[name]), "retinaface")
    save_stand_in(name, weights_folder)
    (weights_folder / WEIGHT_FILES["landmarks"][0]).touch()
    aligner = FaceAlignment(name) if moment == "landmarks" else None
    if file.endswith(".npy"):
        np.save(weights_folder / file, np.array([Bomb(tmp_path / "boom")]), allow_pickle=True)
    else:
        torch.save({"weights": Bomb(tmp_path / "boom")}, weights_folder / file)
    with pytest.raises(InputError):
        (aligner or FaceAlignment(name)).get_lip_landmarks(image)
    assert not (tmp_path / "boom").exists()


def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose every address leads to the file of that name in a folder."""

    def urlopen_there(request: Request) -> object:
        return urlopen((folder / Path(urlparse(request.full_url).path).name).as_uri())

    monkeypatch.setattr("torch.hub.urlopen", urlopen_there)


@pytest.mark.parametrize("name", ["blazeface", "retinaface"])
def test_absent_weights_are_downloaded(
    name: str, weights_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_stand_in(name, tmp_path)
    serve(tmp_path, monkeypatch)
    FaceAlignment(name)
    assert {path.name for path in weights_folder.iterdir()} == set(WEIGHT_FILES[name])


def test_download_with_another_hash_is_not_kept(
    weights_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_stand_in("sfd", tmp_path)
    serve(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="invalid hash"):
        FaceAlignment("sfd")
    assert list(weights_folder.iterdir()) == []


@pytest.mark.parametrize("module", ["dlib", "face_recognition_models"])
def test_missing_dlib_packages_name_the_install_command(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dlib")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InputError, match="pip install dlib-bin face_recognition_models"):
        FaceAlignment("dlib")


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize("name", ["sfd", "blazeface", "retinaface"])
def test_networks_see_the_channels_they_were_trained_on(name: str, weights_folder: Path) -> None:
    """S3FD's and RetinaFace's means belong to BGR (Caffe), BlazeFace was trained on RGB in [-1, 1] (MediaPipe)."""
    save_stand_in(name, weights_folder)
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    expected = image / np.float32(127.5) - 1 if name == "blazeface" else image[..., ::-1] - BGR_MEANS
    aligner = FaceAlignment(name)
    seen: list[torch.Tensor] = []
    aligner._backend.detector.face_detector.register_forward_pre_hook(lambda _net, inputs: seen.append(inputs[0]))
    aligner.detect([image])
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_yunet_sees_bgr(weights_folder: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's detectors take OpenCV's channel order. The fake reports one face, in YuNet's 15 numbers."""
    seen: list[np.ndarray] = []

    class FakeYuNet:
        def setInputSize(self, size: tuple[int, int]) -> None:
            assert size == (64, 48)

        def detect(self, bgr: np.ndarray) -> tuple[int, np.ndarray]:
            seen.append(bgr)
            return 1, np.array([[3, 4, 10, 20, *[0] * 10, 0.9]], dtype=np.float32)

    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_args: FakeYuNet())
    (weights_folder / WEIGHT_FILES["yunet"][0]).touch()
    ((face,),) = FaceAlignment("yunet").detect([image])
    np.testing.assert_array_equal(seen[0], image[..., ::-1])
    assert face.box == (3, 4, 13, 24)
    assert face.score == pytest.approx(0.9)


@pytest.mark.usefixtures("any_checksum")
def test_sfd_boxes_are_the_packages_own_scaled_back(weights_folder: Path) -> None:
    """A batch of shrunk images gives what the package gives for each shrunk image alone, times the scale."""
    from face_alignment.detection.sfd import FaceDetector

    save_stand_in("sfd", weights_folder)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 94, 128, 3), dtype=np.uint8))
    found = FaceAlignment("sfd", detection_size=66).detect(images)
    package = FaceDetector(device="cpu", path_to_detector=weights_folder / WEIGHT_FILES["sfd"][0])
    for faces, original in zip(found, images, strict=True):
        small = cv2.resize(original, (66, 48), interpolation=cv2.INTER_AREA)  # the short side is 48.47, rounded
        expected = np.array(package.detect_from_image(small))
        assert len(faces) == len(expected) > 0
        assert all(face.landmarks is None for face in faces)
        np.testing.assert_allclose([face.score for face in faces], expected[:, 4], atol=1e-4)
        scale = np.array([128 / 66, 94 / 48, 128 / 66, 94 / 48])
        np.testing.assert_allclose([face.box for face in faces], expected[:, :4] * scale, rtol=1e-3, atol=1e-2)


@pytest.mark.usefixtures("any_checksum")
def test_missing_landmark_weights_are_named_on_first_use(weights_folder: Path, image: np.ndarray) -> None:
    save_stand_in("sfd", weights_folder)
    aligner = FaceAlignment("sfd")
    with pytest.raises(InputError, match=r"2DFAN4-11f355bf06\.pth\.tar"):
        aligner.get_lip_landmarks(image)


class Heatmaps(torch.nn.Module):
    """A stand-in for 2D-FAN, which takes seconds on a CPU: 68 heatmaps of random filters, in its list of stages."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filters = torch.nn.Conv2d(3, 68, kernel_size=16, stride=4, padding=6)
        self.batches: list[int] = []

    def forward(self, crops: torch.Tensor) -> list[torch.Tensor]:
        assert crops.shape[1:] == (3, 256, 256)
        self.batches.append(len(crops))
        heatmaps = self.filters(crops)
        return [torch.zeros_like(heatmaps), heatmaps]


@pytest.fixture
def heatmaps(monkeypatch: pytest.MonkeyPatch) -> Heatmaps:
    """The network that face-alignment's class has in place of its own, whose weights are a download."""
    import face_alignment.utils

    network = Heatmaps()
    for compiled in ("transform_np", "_get_preds_fromhm"):  # to compile them takes ten seconds
        monkeypatch.setattr(face_alignment.utils, compiled, getattr(face_alignment.utils, compiled).py_func)
    make_small_gpu(monkeypatch, capacity=1)
    monkeypatch.setattr("face_detection.api._weight_file", str)
    monkeypatch.setattr("face_alignment.FaceAlignment._load_native", lambda *_args: network)
    return network


def package_landmarks(image: np.ndarray, corners: tuple[float, ...]) -> np.ndarray:
    """What face-alignment's own function finds in a box (x1, y1, x2, y2), with the same stand-in for its network."""
    import face_alignment

    aligner = face_alignment.FaceAlignment(
        face_alignment.LandmarksType.TWO_D, device="cpu", flip_input=False, face_detector="sfd", compile=False
    )
    return aligner.get_landmarks_from_image(image, detected_faces=[[*corners, 1.0]])[0]


@pytest.mark.usefixtures("heatmaps")
@pytest.mark.parametrize("box", [(10, 40, 20, 60), (-9, 31, 33, 90)])
def test_landmarks_in_a_box_are_the_packages_own(box: tuple[int, int, int, int], image: np.ndarray) -> None:
    y1, y2, x1, x2 = box
    landmarks = FaceAlignment("sfd").get_landmarks_from_image(image, box)
    assert landmarks is not None
    assert (landmarks.dtype, landmarks.shape) == (np.float32, (68, 2))
    assert len(np.unique(landmarks, axis=0)) > 20  # the stand-in is not blind
    np.testing.assert_array_equal(landmarks, package_landmarks(image, (x1, y1, x2, y2)))


@pytest.mark.usefixtures("heatmaps")
def test_landmarks_of_a_detected_face(image: np.ndarray) -> None:
    """The detector's fake finds (0, 0, 9, 9)."""
    aligner = FaceAlignment("sfd")
    expected = package_landmarks(image, (0, 0, 9, 9))
    found = aligner.get_landmarks_from_image(image)
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    ((plain,),), ((marked,),) = aligner.detect([image]), aligner.detect([image], with_landmarks=True)
    assert plain.landmarks is None
    assert marked.landmarks is not None
    assert (marked.box, marked.score) == (plain.box, plain.score)
    np.testing.assert_array_equal(marked.landmarks, expected)


def test_lips_of_many_crops_are_the_packages_in_one_call(heatmaps: Heatmaps) -> None:
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 48), (7, 64), (128, 100), (300, 260))]
    aligner = FaceAlignment("sfd")
    lips = aligner.lip_landmarks(crops)
    assert heatmaps.batches == [3]
    assert lips[1] is None
    for crop, found in zip(crops, lips, strict=True):
        if found is None:
            assert aligner.get_lip_landmarks(crop) is None
            continue
        height, width = crop.shape[:2]
        assert (found.dtype, found.shape) == (np.float32, (20, 2))
        np.testing.assert_array_equal(found, package_landmarks(crop, (0, 0, width, height))[48:])
        np.testing.assert_array_equal(found, aligner.get_lip_landmarks(crop))
    assert aligner.lip_landmarks([]) == []


def replace_sfd(fake: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake detector needs no weight file."""
    monkeypatch.setattr("face_detection.api._detector_weights", lambda _name: {})
    monkeypatch.setattr("face_alignment.detection.sfd.FaceDetector", fake)


def make_small_gpu(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    """S3FD replaced by a detector that finds an image's first pixel and cannot take more than `capacity` images."""

    class SmallGpu:
        reference_scale = 195

        def __init__(self, device: str, verbose: bool) -> None:
            pass

        def detect_from_batch(self, batch: torch.Tensor) -> list[list[list[float]]]:
            if len(batch) > capacity:
                raise torch.cuda.OutOfMemoryError("too much")
            return [[[0, 0, 9, 9, float(image[0, 0, 0])]] for image in batch]

    replace_sfd(SmallGpu, monkeypatch)


def test_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_small_gpu(monkeypatch, capacity=2)
    aligner = FaceAlignment("sfd", batch_size=8)
    images = [np.full((16, 16, 3), n, dtype=np.uint8) for n in range(13)]
    for _ in range(2):
        assert [faces[0].score for faces in aligner.detect(images)] == list(range(13))
    notices = capsys.readouterr().err
    assert notices.count("notice:") == 1
    assert "8 images" in notices


def test_image_too_large_for_the_gpu_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small_gpu(monkeypatch, capacity=0)
    with pytest.raises(InputError, match="memory"):
        FaceAlignment("sfd", batch_size=4).detect([np.zeros((16, 16, 3), dtype=np.uint8)] * 4)


def test_best_score_first_and_sizes_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoFaces:
        def __init__(self, device: str, verbose: bool) -> None:
            pass

        def detect_from_batch(self, batch: torch.Tensor) -> list[list[list[float]]]:
            return [[[0, 0, 9, 9, 0.6], [1, 1, batch.shape[3], batch.shape[2], 0.8]]] * len(batch)

    replace_sfd(TwoFaces, monkeypatch)
    images = [np.zeros((size, 2 * size, 3), dtype=np.uint8) for size in (16, 16, 20, 16)]
    found = FaceAlignment("sfd").detect(images)
    assert [[face.score for face in faces] for faces in found] == [[0.8, 0.6]] * 4
    assert [faces[0].box[2:] for faces in found] == [(32, 16), (32, 16), (40, 20), (32, 16)]


def test_integer_corners_are_clipped_then_truncated() -> None:
    assert integer_corners((-3.2, 5.9, 10.99, 20.0)) == (0, 5, 10, 20)


def test_dlib_on_a_real_face(dlib_faces: FaceAlignment, astronaut: np.ndarray) -> None:
    """Eileen Collins looks out of (220, 100); her box must be framed as S3FD frames it, portrait-shaped."""
    ((face,),) = dlib_faces.detect([astronaut])
    assert face.landmarks is not None
    assert (face.landmarks.dtype, face.landmarks.shape) == (np.float32, (68, 2))
    x1, y1, x2, y2 = face.box
    assert 160 < x1 < 190
    assert 260 < x2 < 290
    assert 40 < y1 < 80
    assert 170 < y2 < 210
    jaw, brows, chin = face.landmarks[:17], face.landmarks[17:27], face.landmarks[8]
    height = chin[1] - brows[:, 1].min()
    width = np.ptp(jaw[:, 0])
    assert (x1, y1) == pytest.approx((jaw[:, 0].min() - 0.02 * width, brows[:, 1].min() - 0.28 * height), abs=0.01)
    assert (x2, y2) == pytest.approx((jaw[:, 0].max() + 0.02 * width, chin[1] + 0.04 * height), abs=0.01)
    inside = (face.landmarks >= [x1, y1]) & (face.landmarks <= [x2, y2])
    assert inside.all()
    assert dlib_faces.get_detections_for_batch([astronaut]) == [tuple(int(v) for v in face.box)]


def test_dlib_scales_back(dlib_faces: FaceAlignment, astronaut: np.ndarray) -> None:
    """A picture three times as large is searched at the first one's size: its box and landmarks are just larger."""
    aligner = FaceAlignment("dlib", detection_size=512)
    small = dlib_faces.detect([astronaut])[0][0]
    large = aligner.detect([cv2.resize(astronaut, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)])[0][0]
    assert small.landmarks is not None
    assert large.landmarks is not None
    np.testing.assert_allclose(np.array(large.box) / 3, small.box, atol=4)
    np.testing.assert_allclose(large.landmarks / 3, small.landmarks, atol=4)


def test_dlib_finds_a_small_face_by_upsampling(dlib_faces: FaceAlignment, astronaut: np.ndarray) -> None:
    ((face,),) = dlib_faces.detect([cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)])
    assert 80 < face.box[0] < 95


def test_no_face_is_none(dlib_faces: FaceAlignment) -> None:
    blank = np.full((120, 120, 3), 128, dtype=np.uint8)
    assert dlib_faces.detect([blank]) == [[]]
    assert dlib_faces.get_detections_for_batch([blank]) == [None]
    assert dlib_faces.get_landmarks_from_image(blank) is None
    assert dlib_faces.get_lip_landmarks(blank[:7]) is None


def test_dlib_landmarks_of_a_crop_agree_with_the_detected_ones(
    dlib_faces: FaceAlignment, astronaut: np.ndarray
) -> None:
    """The crop is the box: it must be turned into the square that dlib's predictor expects, or the points drift."""
    ((face,),) = dlib_faces.detect([astronaut])
    assert face.landmarks is not None
    x1, y1, x2, y2 = integer_corners(face.box)
    eyes = np.linalg.norm(face.landmarks[36] - face.landmarks[45])
    detected = dlib_faces.get_landmarks_from_image(astronaut)
    np.testing.assert_array_equal(detected, face.landmarks)
    given = dlib_faces.get_landmarks_from_image(astronaut, box=(y1, y2, x1, x2))
    assert given is not None
    assert np.linalg.norm(given - face.landmarks, axis=1).mean() < 0.02 * eyes
    lips = dlib_faces.get_lip_landmarks(astronaut[y1:y2, x1:x2])
    assert lips is not None
    assert (lips.dtype, lips.shape) == (np.float32, (20, 2))
    assert np.linalg.norm(lips + np.array([x1, y1]) - face.landmarks[48:], axis=1).mean() < 0.02 * eyes


# --- whose face it is


def distance(identity: FaceIdentity, *faces: tuple[np.ndarray, Detection]) -> float:
    one, other = (identity.describe(image, face) for image, face in faces)
    return float(np.linalg.norm(one - other))


def test_a_mirrored_and_darkened_face_is_the_same_persons(dlib_faces: FaceAlignment, astronaut: np.ndarray) -> None:
    changed = np.ascontiguousarray(astronaut[:, ::-1]) // 2
    faces = [(image, dlib_faces.detect([image])[0][0]) for image in (astronaut, changed)]
    identity = FaceIdentity()
    descriptor = identity.describe(*faces[0])
    assert (descriptor.dtype, descriptor.shape) == (np.float64, (128,))
    assert distance(identity, *faces) < SAME_PERSON
    boxes_only = [(image, Detection(face.box, 1.0, None)) for image, face in faces]
    assert distance(identity, *boxes_only) < SAME_PERSON
    beside = Detection((0, 300, 150, 500), 1.0, None)  # no face at all
    assert distance(identity, faces[0], (astronaut, beside)) > SAME_PERSON


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs ../shared")
def test_four_people_are_told_apart(dlib_faces: FaceAlignment) -> None:
    identity = FaceIdentity()
    people = []
    for path in sorted(CLIPS.glob("*.mp4")):
        frames = list(open_video(str(path), 5).frames(stop=11))[::10]  # two seconds apart
        faces = [dlib_faces.detect([frame])[0][0] for frame in frames]
        people.append([identity.describe(*shown) for shown in zip(frames, faces, strict=True)])
    first, later = np.array(people).swapaxes(0, 1)
    distances = np.linalg.norm(first[:, None] - later[None], axis=2)
    np.testing.assert_array_equal(distances < SAME_PERSON, np.eye(4, dtype=bool))


@pytest.mark.parametrize("module", ["dlib", "face_recognition_models"])
def test_missing_identity_network_names_flag_and_install_command(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"--face_index.*pip install dlib-bin face_recognition_models.*-1") as caught:
        FaceIdentity()
    assert "\n" not in str(caught.value)


# --- what detections depend on


def test_fingerprint_of_dlib(dlib_faces: FaceAlignment) -> None:
    fingerprint = dlib_faces.fingerprint()
    assert sorted(fingerprint) == ["dlib", "opencv", "shape_predictor_68_face_landmarks.dat"]
    assert fingerprint["opencv"] == cv2.__version__
    assert dlib_faces.fingerprint(with_landmarks=True) == fingerprint  # they come for nothing


def test_fingerprint_changes_with_each_weight_file(weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_stand_in("blazeface", weights_folder)
    landmarks = weights_folder / "2DFAN4-11f355bf06.pth.tar"
    landmarks.write_bytes(b"old")
    monkeypatch.setattr(  # its hash is not the one that its name says
        "face_detection.api._weight_file", lambda url: str(weights_folder / Path(urlparse(url).path).name)
    )
    aligner = FaceAlignment("blazeface")
    plain, marked = aligner.fingerprint(), aligner.fingerprint(with_landmarks=True)
    assert sorted(plain) == ["anchors.npy", "blazeface.pth", "face-alignment", "opencv", "torch"]
    assert marked == {**plain, landmarks.name: marked[landmarks.name]}
    assert len(marked) == len(plain) + 1
    for path in (landmarks, weights_folder / "anchors.npy"):
        path.write_bytes(b"new")
    changed = aligner.fingerprint(with_landmarks=True)
    assert {name for name in marked if marked[name] != changed[name]} == {landmarks.name, "anchors.npy"}


def test_fingerprint_needs_the_landmark_weights(weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (weights_folder / "s3fd-619a316812.pth").touch()
    make_small_gpu(monkeypatch, capacity=1)
    with pytest.raises(InputError, match=r"2DFAN4-11f355bf06\.pth\.tar"):
        FaceAlignment("sfd").fingerprint(with_landmarks=True)
