"""`python -m benchmarks.soak`: exits with 1 where the server failed, leaked or lost something."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.soak.run import Plan, soak


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Load a real server for minutes.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--bundle", type=Path, help="what to serve (default: the embedded models)")
    parser.add_argument("--workers", type=int, default=12, help="clients at once, apart from bursts (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the load (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or arguments.workers < 1:
        parser.error("--minutes must be more than 0, --workers at least 1")
    if (bundle := arguments.bundle) is None:
        from benchmarks.demo import zoo_bundle  # it merges at the first call

        bundle = zoo_bundle()
    report = soak(Plan(bundle, 60 * arguments.minutes, arguments.workers, arguments.seed))
    print(json.dumps(report.as_json(), indent=2) if arguments.json else report.as_text())
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
