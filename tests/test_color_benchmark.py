"""The benchmark's own figures: a cast and noise of known size on pictures that are otherwise true."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from color_benchmark import CASTS, NOISE, main, noise_measures
from test_post_processing import coloured_items, face_landmarks


def test_the_table_shows_a_cast_and_that_it_is_taken_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.pkl"
    path.write_bytes(pickle.dumps(coloured_items([(1, 1, 1)] * 3, face_landmarks())))
    assert main([str(path), "--every", "2"]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    columns = lines[0][1:]
    table = {name: dict(zip(columns, map(float, cells), strict=True)) for name, *cells in lines[2:]}
    for match in ("lab", "histogram"):
        cast, taken_out = table["steady, none"], table[f"steady, {match}"]
        for column in columns[:1] + columns[2:5]:
            assert taken_out[column] < 0.2 * cast[column]
        assert taken_out["PSNR, lower half"] > cast["PSNR, lower half"] + 3
    assert table["none, none"]["skin, plain paste"] < 0.5 < 3 < table["steady, none"]["skin, plain paste"]


def test_the_drift_comes_and_goes_in_two_seconds() -> None:
    assert [round(CASTS["drift"](frame), 3) for frame in (0, 25, 50)] == [0, 1, 0]


def test_noise_of_the_said_size_is_measured_before_and_after() -> None:
    measured = noise_measures(coloured_items([(1, 1, 1)] * 2, face_landmarks()), every=1)
    of_noise = 20 * np.log10(255 / NOISE)
    assert of_noise < measured["noisy"] < of_noise + 8  # blended, and softened by enlarging
    assert measured["noisy"] + 1 < measured["--denoise 0.5"] < measured["--denoise 1"]
