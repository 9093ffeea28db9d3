"""`python -m benchmarks.fuzz`: exits with 1 where a request was answered as it must not be, or something was held."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from benchmarks.fuzz.attack import attack
from benchmarks.soak.server import server_process

KEY = "fuzz"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description="Attack a real server by chance.")
    parser.add_argument("--requests", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--bundle", type=Path, help="what to serve (default: the embedded models)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default 0)")
    parser.add_argument("--at-once", type=int, default=16, help="requests under way together (default 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    arguments = parser.parse_args()
    if arguments.requests < 1 or arguments.at_once < 1:
        parser.error("--requests and --at-once must be at least 1")
    if (bundle := arguments.bundle) is None:
        from benchmarks.demo import zoo_bundle  # it merges at the first call

        bundle = zoo_bundle()
    # An admin key and a directory, so that the routes that change experts are reached, too.
    options = ["--admin-api-key", KEY, "--expert-dir", str(bundle / "experts"), "--log-level", "error"]
    with server_process(bundle, options) as server:
        report = asyncio.run(attack(server.url, arguments.requests, arguments.seed, arguments.at_once, KEY))
    print(json.dumps(report.as_json(), indent=2) if arguments.json else report.as_text())
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
