"""`python -m benchmarks.lm_eval`."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.lm_eval.run import evaluate


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lm_eval", description="Let lm-eval ask the server.")
    parser.add_argument("--prompts", type=int, default=50, help="unseen prompts a task (default 50)")
    parser.add_argument("--bundle", type=Path, help="a bundle of the zoo (default: the demo's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    arguments = parser.parse_args()
    if arguments.prompts < 4:
        parser.error("--prompts must be at least 4")
    if (bundle := arguments.bundle) is None:
        from benchmarks.demo import zoo_bundle  # it merges at the first call

        bundle = zoo_bundle()
    report = evaluate(bundle, arguments.prompts)
    if arguments.json:
        print(json.dumps(report, indent=2))
    elif "skipped" in report:
        print(f"skipped: {report['skipped']}")
    else:
        for name, metrics in report["results"].items():
            print(f"{name}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
