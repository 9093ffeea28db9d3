"""`python -m benchmarks.event_loop`: exits with 1 if a request held up a stream for longer than the limit."""

import dataclasses
import sys

from benchmarks.event_loop.bodies import cases
from benchmarks.event_loop.measure import LIMIT_SECONDS, Outcome, measure
from benchmarks.server import at_least, bundle_of, command_line, server_process, show
from serve.config import ApiSettings


def main() -> int:
    """Run the command line."""
    parser = command_line("benchmarks.event_loop", "Send bodies that are expensive to read, beside a stream.")
    parser.add_argument(
        "--repeats", type=at_least(1), default=1, help="number of times that each body is sent (default 1)"
    )
    arguments = parser.parse_args()
    with server_process(bundle_of(arguments), ["--log-level", "error"]) as server:
        outcomes = measure(server.url, cases(ApiSettings().max_body_bytes), arguments.repeats)
    worst = max(outcome.gap_seconds for outcome in outcomes)
    report = {
        "limit_seconds": LIMIT_SECONDS,
        "longest_gap_seconds": worst,
        "requests": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    lines = [f"{'body':46} {'MB':>6} {'status':>6} {'reply s':>8} {'gap s':>7}", *map(_line, outcomes)]
    lines.append(f"longest gap {worst:.3f} s; {LIMIT_SECONDS} s are allowed")
    return show(arguments, report, "\n".join(lines), all(outcome.good for outcome in outcomes))


def _line(outcome: Outcome) -> str:
    mark = "" if outcome.good else "  !"
    figures = f"{outcome.megabytes:6.1f} {outcome.status:6} {outcome.seconds:8.3f} {outcome.gap_seconds:7.3f}"
    return f"{outcome.name:46} {figures}{mark}"


if __name__ == "__main__":
    sys.exit(main())
