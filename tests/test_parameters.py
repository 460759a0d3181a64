"""README, guide, reference and options say the same flags; `python scripts/parameters.py` mends the first three."""

import re
from pathlib import Path

import parameters
import pytest
from parameters import GUIDE, README, REFERENCE, ROOT, SHOWN, main, reference, section_of, sections, with_short_table

from guided_diffusion.errors import InputError
from guided_diffusion.options import Options, create_argparser

FLAGS = [name for name in vars(create_argparser().parse_args([])) if name != "help"]
MEND = "run python scripts/parameters.py"


def test_the_reference_and_the_readme_are_as_the_options_are() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(GUIDE.read_text(encoding="utf-8")), MEND
    readme = README.read_text(encoding="utf-8")
    assert readme == with_short_table(readme), MEND
    assert "docs/parameters.md" in readme


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_stands_in_help_and_reference(name: str) -> None:
    assert f"--{name} " in create_argparser().format_help()
    assert re.search(rf"`--{name}[` ]", REFERENCE.read_text(encoding="utf-8")), MEND


@pytest.mark.parametrize("name", [parameter.name for parameter in parameters.parameters()])
def test_every_flag_stands_in_the_guide(name: str) -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert f"--{name}" in sections(guide)[section_of(name, guide)]


def test_the_reference_says_what_an_option_is() -> None:
    (line,) = (line for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith("| [`--crf`]"))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells[:4] == ["whole number", str(Options.crf), "0 to 51", "output"]
    assert "H.264 quality" in cells[4]


def test_groups_begin_at_options_that_there_are() -> None:
    """Renamed, an option would take its group with it."""
    assert parameters.GROUPS.keys() <= set(FLAGS)
    assert set(SHOWN) <= set(FLAGS)
    assert all(parameter.group for parameter in parameters.parameters())
    assert len(SHOWN) < 16


def test_a_flag_that_the_guide_does_not_know_is_an_error() -> None:
    with pytest.raises(InputError, match=r"--crf is not in docs/user-guide\.md"):
        reference(GUIDE.read_text(encoding="utf-8").replace("--crf", "--quality"))


def test_check_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check"]) == 0
    (tmp_path / "README.md").write_text(README.read_text(encoding="utf-8").replace("| `--", "| `-"))
    monkeypatch.setattr(parameters, "README", tmp_path / "README.md")
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    assert main(["--check"]) == 1
    assert "README.md: is out of date" in capsys.readouterr().out
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == README.read_text(encoding="utf-8")


def test_no_document_names_a_flag_that_there_is_not() -> None:
    """One that was renamed or misspelt. Those of the scripts stand in their code, torchrun's here."""
    sources = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "audio").glob("*.py")]
    others = {flag for path in sources for flag in re.findall(r"\"--(\w+)\"", path.read_text(encoding="utf-8"))}
    others |= {"standalone", "nproc_per_node", "nnodes", "node_rank", "rdzv_backend", "rdzv_endpoint"}
    trained = re.findall(r"^    (\w+): .* = option\(", (ROOT / "scripts" / "train.py").read_text(), re.MULTILINE)
    known = {*FLAGS, *others, *trained, "warmth"}  # the last is of how-to-add-a-stage.md, which is tested apart
    # benchmarks.md tells of flags that were not kept
    for path in {README, *(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "benchmarks.md"}:
        named = set(re.findall(r"(?<![\w-])--(\w+)", path.read_text(encoding="utf-8")))
        assert named <= known, f"{path.name}: {sorted(named - known)}"
