"""`python -m benchmarks.lm_eval`."""

import sys
from typing import Any

from benchmarks.lm_eval.run import evaluate
from benchmarks.server import at_least, bundle_of, command_line, show


def main() -> int:
    """Run the command line."""
    parser = command_line("benchmarks.lm_eval", "Evaluate a server with lm-eval.")
    parser.add_argument("--prompts", type=at_least(4), default=50, help="unseen prompts a task (default 50)")
    arguments = parser.parse_args()
    report = evaluate(bundle_of(arguments), arguments.prompts)
    return show(arguments, report, _text(report), good=True)


def _text(report: dict[str, Any]) -> str:
    if "skipped" in report:
        return f"skipped: {report['skipped']}"
    return "\n".join(
        f"{name}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items())
        for name, metrics in report["results"].items()
    )


if __name__ == "__main__":
    sys.exit(main())
