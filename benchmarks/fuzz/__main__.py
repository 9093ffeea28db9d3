"""`python -m benchmarks.fuzz`: exits with 1 if a request was answered as it must not be, or something was held."""

import asyncio
import sys

from benchmarks.fuzz.attack import attack
from benchmarks.server import at_least, bundle_of, command_line, server_process, show

KEY = "fuzz"
"""An admin key, so that the routes that change experts are reached, too."""


def main() -> int:
    """Run the command line."""
    parser = command_line("benchmarks.fuzz", "Send random malformed requests to a real server.")
    parser.add_argument("--requests", type=at_least(1), default=10_000, help="number of requests (default 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests (default 0)")
    parser.add_argument("--at-once", type=at_least(1), default=16, help="requests in flight at once (default 16)")
    arguments = parser.parse_args()
    with server_process(bundle_of(arguments), ["--log-level", "error"], KEY) as server:
        report = asyncio.run(attack(server.url, arguments.requests, arguments.seed, arguments.at_once, KEY))
    return show(arguments, report.as_json(), report.as_text(), report.good)


if __name__ == "__main__":
    sys.exit(main())
