"""`python -m benchmarks.compare A B`: which figures of two results files moved by more than their own noise."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.suite.figures import FiguresError, compare, read


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=0.02, help="smallest change that counts (default 0.02)")
    parser.add_argument("--json", action="store_true", help="print one JSON document: every figure that both have")
    options = parser.parse_args()
    try:
        before, after = read(options.before), read(options.after)
    except FiguresError as error:
        sys.exit(f"error: {error}")
    changes = compare(before, after, options.threshold)
    if options.json:
        print(json.dumps({"changes": [asdict(change) for change in changes]}))
        return
    moved = [change for change in changes if change.moved]
    for change in moved:
        print(
            f"{change.relative:+8.1%}  {change.before:12.5g} → {change.after:<12.5g} {change.name}"
            f"  (repetitions differ by {change.spread:.1%})"
        )
    missing = sorted(before.keys() ^ after.keys())
    print(f"{len(moved)} of {len(changes)} figures moved beyond their repetitions' spread")
    if missing:
        print(f"{len(missing)} figures are in one file only, as {missing[0]}")


if __name__ == "__main__":
    main()
