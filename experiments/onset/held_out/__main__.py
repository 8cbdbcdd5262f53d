"""`python -m experiments.onset.held_out --out runs/onset`: record the runs of the held-out worlds.

A run that is there already is not recorded again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.onset.held_out.corpus import WORLDS, make, path, print_shares, recorded
from experiments.onset.held_out.plan import plan
from experiments.onset.held_out.texts import DATA


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.onset.held_out", description=(__doc__ or "").split(": ")[1]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/onset"), help="folder of corpora")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of public data sets")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    options = parser.parse_args()
    try:
        plans = [plan(make(name, options.data)) for name in WORLDS]
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    recipes = [one for turn in zip(*plans, strict=True) for one in turn]
    left = [one for one in recipes if not path(options.out, one).exists()]
    print(f"{len(recipes)} runs, {len(recipes) - len(left)} of them recorded already", flush=True)
    for count, line in enumerate(recorded(left, options.out, options.data, options.workers), 1):
        print(f"{count}/{len(left)} {line}", flush=True)
    print_shares(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
