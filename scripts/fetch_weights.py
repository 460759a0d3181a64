"""Download super-resolution networks ahead: `python scripts/fetch_weights.py NAME...`; each is checked by its SHA-256.

They go into checkpoints/, or into PyTorch's cache where that may not be written to. The same command continues an
interrupted download.
"""

import argparse
import sys
from collections.abc import Sequence

import _path  # noqa: F401
from guided_diffusion.errors import InputError
from super_resolution import MODELS, find_weights


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=tuple(MODELS), help=f"of {', '.join(MODELS)}")
    arguments = parser.parse_args(argv)
    try:
        for name in arguments.names:
            print(find_weights(name))
    except InputError as error:
        print(f"fetch_weights.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk
        print(f"fetch_weights.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
