"""What leaks from the old mouth: mouths that follow, that do not, that are the source's; a run with stand-ins."""

import json
import shutil
from pathlib import Path

import ablation
import leak
import numpy as np
import pytest
from leak import OPEN, PIECE, Triplets, main, open_share, shares, triplets

SAMPLES = Path(__file__).parent.parent / "samples"
N_CLIPS, N_FRAMES = 4, 100


def syllables(seed: int, n: int = N_FRAMES) -> np.ndarray:
    """Something that moves as mouths do, at 2 to 7 Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=n))
    frequency = np.fft.rfftfreq(n, 1 / 25)
    return np.fft.irfft(spectrum * ((frequency > 1) & (frequency < 7)), n)


def pool(first_seed: int) -> list[np.ndarray]:
    return [syllables(first_seed + k) for k in range(N_CLIPS)]


def scores(mouths: list[np.ndarray], own: list[np.ndarray]) -> dict[str, float | None]:
    return triplets(mouths, own, [[o for o in own if o is not this] for this in own]).summary()


def test_a_mouth_that_follows_is_told_from_one_that_does_not() -> None:
    speech, noise = pool(0), pool(50)
    follows = scores([s + n for s, n in zip(speech, noise, strict=True)], speech)
    assert follows["matched"] == pytest.approx(0.7, abs=0.12)
    assert abs(follows["shifted"]) < 0.15  # type: ignore[arg-type]
    assert abs(follows["other"]) < 0.15  # type: ignore[arg-type]
    assert follows["p_shifted"] < 0.001  # type: ignore[operator]
    assert follows["p_other"] < 0.001  # type: ignore[operator]
    assert follows["pieces"] == N_CLIPS * round(N_FRAMES / PIECE)
    wrong = scores(noise, speech)
    assert wrong["p_shifted"] > 0.05  # type: ignore[operator]
    assert wrong["p_other"] > 0.05  # type: ignore[operator]
    # in antiphase is no following
    assert scores([-s for s in speech], speech)["p_other"] > 0.99  # type: ignore[operator]


def test_under_the_null_hypothesis_small_p_values_are_rare() -> None:
    p_values = [scores(pool(1000 + 20 * k), pool(1010 + 20 * k))["p_other"] for k in range(40)]
    assert 0.3 < np.mean(p_values) < 0.7  # type: ignore[arg-type]
    assert np.mean(np.array(p_values) < 0.05) < 0.2


def test_a_mouth_that_does_not_move_follows_nothing() -> None:
    still = scores([np.full(N_FRAMES, 0.1)] * N_CLIPS, pool(0))
    assert [still[name] for name in ("matched", "shifted", "other")] == pytest.approx([0, 0, 0], abs=1e-9)


def test_the_shares_of_all_frames_are_the_correlation() -> None:
    mouth, sound = syllables(1), syllables(1) + syllables(2)
    assert shares(mouth, [sound]).mean() == pytest.approx(np.corrcoef(mouth, sound)[0, 1])


def test_unknown_mouths_are_left_out() -> None:
    speech = syllables(0)
    mouth = speech.copy()
    mouth[:PIECE] = np.nan
    mouth[PIECE : PIECE + 3] = np.nan
    matched = triplets([mouth], [speech], [[]]).matched
    assert len(matched) == round((N_FRAMES - PIECE - 3) / PIECE)
    assert matched.mean() == pytest.approx(1)
    assert open_share([np.array([np.nan, OPEN / 2, 2 * OPEN, 3 * OPEN])]) == pytest.approx(2 / 3)
    nothing = triplets([np.full(N_FRAMES, np.nan)], [speech], [[]]).summary()
    assert nothing["matched"] is None
    assert nothing["pieces"] == 0


def test_without_others_there_is_no_p() -> None:
    alone = Triplets(np.ones(3), np.zeros(3), np.full(3, np.nan)).summary()
    assert alone["other"] is None
    assert alone["p_other"] is None
    assert alone["p_shifted"] == pytest.approx(1 / 8)  # all of 2^3 ways to swap


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """A run on the sample's first 52 frames, with the source itself in the result's place: by name, and the tables."""
    folder = tmp_path_factory.mktemp("leak")
    (folder / "c.toml").write_text(
        f'model_path = "{SAMPLES.parent / "checkpoints" / "demo.safetensors"}"\nflags = []\n'
        '[[rows]]\nname = "parrot"\nflags = []\n'
        f'[[clips]]\nname = "sample"\ngroup = "g"\nvideo = "{SAMPLES / "astronaut.mp4"}"\n'
        f'audio = "{SAMPLES / "speech.wav"}"\npart = [0.0, 0.3]\n'
    )

    def show_the_source(_script: Path, arguments: list[str]) -> None:
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        Path(given["--out_path"]).parent.mkdir(exist_ok=True)
        shutil.copy(given["--video_path"], given["--out_path"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "execute", show_the_source)
        assert main([str(folder / "c.toml"), "--out", str(folder / "out")]) == 0
        patch.setattr(ablation, "execute", None)  # what is there is not made again
        config = ablation.read_config(folder / "c.toml")
        clip = leak.inputs_of(config.clips[0], folder / "out")
        assert leak.make(config, config.rows[0], clip, clip.silence, folder / "out").is_file()
    found = json.loads((folder / "out" / "leak.json").read_text())
    return {line["name"]: line for line in found}, (folder / "out" / "leak.md").read_text()


def test_the_old_mouth_is_found_to_leak(lines: tuple[dict, str]) -> None:
    parrot, still = (lines[0][name]["silence"] for name in ("parrot", "frozen mouth"))
    assert parrot["matched"] == pytest.approx(1)
    assert parrot["open"] > 0.2
    assert parrot == lines[0]["true video"]["silence"]
    assert abs(still["matched"]) < 0.6


def test_the_true_video_is_the_ceiling_and_says_its_own_sentence(lines: tuple[dict, str]) -> None:
    true, wrong = (lines[0][name]["triplets"] for name in ("true video", "true mouth, another sentence"))
    assert true["matched"] > 0.3
    assert true["matched"] > true["shifted"] + 0.2
    assert wrong == lines[0]["parrot"]["triplets"]


def test_the_tables_have_a_line_for_each(lines: tuple[dict, str]) -> None:
    triplet_table, silence_table = lines[1].strip().split("\n\n")
    assert [line.split(" | ")[0] for line in triplet_table.splitlines()[2:]] == [
        "| parrot", "| frozen mouth", "| true video", "| true mouth, another sentence",
    ]  # fmt: skip
    assert len(silence_table.splitlines()) == 5
    assert "–" in silence_table  # there is no other clip
    assert " %" in silence_table


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("leak.py: error: ")
