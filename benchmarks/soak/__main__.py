"""`python -m benchmarks.soak`: exits with 1 if the server failed, leaked or lost something."""

import sys

from benchmarks.server import at_least, bundle_of, command_line, show
from benchmarks.soak.run import Plan, soak


def main() -> int:
    """Run the command line."""
    parser = command_line("benchmarks.soak", "Load a real server for minutes.")
    parser.add_argument("--minutes", type=float, default=10.0, help="duration in minutes (default 10)")
    parser.add_argument(
        "--workers", type=at_least(1), default=12, help="clients at once, apart from bursts (default 12)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the load (default 0)")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes must be more than 0")
    report = soak(Plan(bundle_of(arguments), 60 * arguments.minutes, arguments.workers, arguments.seed))
    return show(arguments, report.as_json(), report.as_text(), report.clean)


if __name__ == "__main__":
    sys.exit(main())
