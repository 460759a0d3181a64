"""The reference of the flags: `python scripts/parameters.py` writes docs/parameters.md and README's table.

Run it after a flag was added or changed, and say in docs/user-guide.md what the flag is for: each is linked to its
section there. `--check` writes nothing and fails where something would change (tests/test_parameters.py does the same).
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from _path import ROOT
from guided_diffusion.errors import InputError
from guided_diffusion.options import Options, create_argparser
from guided_diffusion.script_util import FIXED_OPTIONS, ModelConfig
from guided_diffusion.store import replace_when_complete

REFERENCE, README, GUIDE = ROOT / "docs" / "parameters.md", ROOT / "README.md", ROOT / "docs" / "user-guide.md"
START, END = "<!-- flags: written by scripts/parameters.py -->", "<!-- end of flags -->"

# A group begins with this option, in the options' own order.
GROUPS = {
    "video_path": "Inputs and results",
    "generate_from_filelist": "Lists of videos",
    "video_fps": "Frame rate and length",
    "denoise_audio": "What the network hears",
    "face_detector": "Which face, and where",
    "adaptive_resolution": "Network and sampling",
    "device": "What it runs on",
    "blur_kernel_size": "After the network",
    "work_dir": "What is kept",
}
SHORTHANDS = "Several flags in one word"

# The ones that README shows.
SHOWN = (
    "video_path", "audio_path", "out_path", "model_path", "is_voxceleb2", "face_detector", "quality_preset",
    "sampling_seed", "pad_audio", "audio_longer", "enhance", "blur_kernel_size", "work_dir", "dry_run",
    "quality_report",
)  # fmt: skip

TYPES = {"BOOL": "true or false", "INT": "whole number", "FLOAT": "number", "STR": "text"}

INTRODUCTION = """# Parameters of generate.py

Written by `python scripts/parameters.py` from the options; do not edit it. What a flag is for, when to use it and what
it costs: the link at its name. Booleans take true/false, 1/0, yes/no. A value that is not allowed, and two flags that
contradict each other, are an error of one line.

*Changes* is the first part of a run that the flag changes, and so what `--work_dir` makes anew when the flag does:
**faces** all of it, from the detection on; **sampling** the samples, with the faces that are stored; **output** what
comes after sampling only; **run** nothing that is stored.
"""

NETWORK = """
## The network's own

They come with the checkpoint. Flags may repeat them, as upstream's scripts do, not contradict them; for bare weights
they describe the network. The defaults are the paper's.
"""

FIXED = """
## Accepted with one value

Upstream's flags whose other values never ran, or are for training only:
"""


class Parameter(NamedTuple):
    """A flag of generate.py. `affects` is empty where it stands for others."""

    name: str
    group: str
    type: str
    default: str
    allowed: str
    affects: str
    help: str


def parameters() -> list[Parameter]:
    """Those that stand for others, then the options in their groups; not the network's own."""
    actions = {action.dest: action for action in create_argparser()._actions}  # argparse has no public list of them
    options = {f.name: f for f in dataclasses.fields(Options)}
    own = {*(f.name for f in dataclasses.fields(ModelConfig)), "mel_steps_per_sec", *FIXED_OPTIONS, "help"}
    found = [
        Parameter(
            name, SHORTHANDS, TYPES[str(action.metavar)], _shown(action.default), "", "", _marked(str(action.help))
        )
        for name, action in actions.items()
        if name not in options and name not in own
    ]
    group = ""
    for name, f in options.items():
        group = GROUPS.get(name, group)
        meta = f.metadata
        type_ = "word" if meta["choices"] else TYPES[str(actions[name].metavar)]
        default = meta["none"] if f.default is None and meta["none"] else _shown(f.default)
        found.append(Parameter(name, group, type_, default, _allowed(meta), meta["affects"], _marked(meta["help"])))
    return found


def _shown(default: Any) -> str:
    return "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def _allowed(metadata: Any) -> str:
    words = [f"`{choice}`" for choice in metadata["choices"] if choice]
    if metadata["within"]:
        words.append("{:g} to {:g}".format(*metadata["within"]))
    if metadata["none"]:
        words.append(f"`{metadata['none']}`")
    return ", ".join(words)


# -------------------------------------------------------------------------------------------------------- the guide


def sections(guide: str) -> dict[str, str]:
    """The guide's sections, heading first, by the anchors that GitHub gives them."""
    texts = re.split(r"^## ", guide, flags=re.MULTILINE)[1:]
    return {re.sub(r"[^\w\- ]", "", text.partition("\n")[0].lower()).replace(" ", "-"): text for text in texts}


def section_of(name: str, guide: str) -> str:
    """The anchor of the section that tells of a flag: has it in its heading, else in its text.

    :raises InputError: when there is none.
    """
    mention = re.compile(rf"--{name}\b")
    found = sections(guide)
    headings = [anchor for anchor, text in found.items() if mention.search(text.partition("\n")[0])]
    for anchor in headings or (anchor for anchor, text in found.items() if mention.search(text)):
        return anchor
    raise InputError(f"--{name} is not in docs/user-guide.md: say there what it is for, when, and at what cost")


# ------------------------------------------------------------------------------------------------------- the tables


def reference(guide: str) -> str:
    """docs/parameters.md. :raises InputError: when the guide does not tell of a flag."""
    return "\n".join(_reference(guide))


def _reference(guide: str) -> Iterator[str]:
    yield INTRODUCTION.rstrip()
    group = ""
    for parameter in parameters():
        if parameter.group != group:
            group = parameter.group
            yield from ("", f"## {group}", "", *_table("flag", "type", "default", "allowed", "changes", "what"))
        name, _, *cells = parameter
        yield _row(f"[`--{name}`](user-guide.md#{section_of(name, guide)})", *cells)
    yield NETWORK
    yield from _table("flag", "default", "what")
    for f in dataclasses.fields(ModelConfig):
        yield _row(f"`--{f.name}`", _shown(f.default), f.metadata["help"])
    yield _row("`--mel_steps_per_sec`", "80", "sample_rate / hop_size, by upstream's name")
    yield FIXED
    yield ", ".join(f"`--{name} {value}`" for name, value in FIXED_OPTIONS.items()) + ".\n"


def short_table() -> str:
    """README's table: SHOWN, in its order."""
    known = {parameter.name: parameter for parameter in parameters()}
    rows = [_row(f"`--{name}`", known[name].default, _and_allowed(known[name])) for name in SHOWN]
    return "\n".join([*_table("flag", "default", "what"), *rows])


def _and_allowed(parameter: Parameter) -> str:
    return f"{parameter.help} ({parameter.allowed})" if parameter.allowed else parameter.help


def _table(*head: str) -> list[str]:
    return [_row(*head), "|---" * len(head) + "|"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _marked(text: str) -> str:
    """Flags and <names> as code."""
    return re.sub(r"(?<!\S)(--\w+|\S*<\w+>[\w.<>]*)", r"`\1`", text)


def with_short_table(readme: str) -> str:
    """README.md with its table as the options are. :raises InputError: when it has no place for it."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise InputError(f"README.md has no lines {START} and {END}, between which the table goes")
    return f"{before}{start}\n{short_table()}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where something would change")
    is_check = parser.parse_args(argv).check
    try:
        texts = {
            REFERENCE: reference(GUIDE.read_text(encoding="utf-8")),
            README: with_short_table(README.read_text(encoding="utf-8")),
        }
    except InputError as error:
        print(f"parameters.py: error: {error}", file=sys.stderr)
        return 2
    old = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{path.relative_to(ROOT)}: {'is out of date' if is_check else 'written'}")
        if not is_check:
            with replace_when_complete(path) as part:
                part.write_text(texts[path], encoding="utf-8")
    return 1 if is_check and old else 0


if __name__ == "__main__":
    sys.exit(main())
