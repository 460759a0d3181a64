"""One switch for the recommended enhancements."""

import dataclasses

import pytest

from guided_diffusion.options import ENHANCEMENTS, Options, parse_options

PATHS = ["--video_path", "a.mp4", "--audio_path", "a.wav", "--model_path", "m.pt"]


def parsed(*argv: str) -> Options:
    return parse_options([*PATHS, *argv])[0]


def test_enhance_is_its_flags_and_nothing_else() -> None:
    spelled_out = [part for name, value in ENHANCEMENTS.items() for part in (f"--{name}", str(value))]
    assert dataclasses.replace(parsed("--enhance", "True"), enhance=False) == parsed(*spelled_out)
    assert parsed("--enhance", "False") == parsed()
    assert all(value != getattr(Options, name) for name, value in ENHANCEMENTS.items())


@pytest.mark.parametrize(
    "own", [["--temporal_smoothing", "0"], ["--blur_kernel_size=0"], ["--super_resolution", "False"]]
)
def test_each_enhancement_can_be_overridden_with_off_too(own: list[str]) -> None:
    for argv in (["--enhance", "True", *own], [*own, "--enhance", "True"]):
        options = parsed(*argv)
        name = own[0].split("=")[0][2:]
        assert getattr(options, name) == getattr(Options, name)
        others = ENHANCEMENTS.keys() - {name}
        assert {other: getattr(options, other) for other in others} == {o: ENHANCEMENTS[o] for o in others}
        assert f"--{name} {getattr(options, name)}" in options.enhancements
