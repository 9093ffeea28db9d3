"""`python -m benchmarks.interchange`."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.interchange.compare import compare
from benchmarks.peers import VLLM, PeerError, prepare


def main() -> int:
    """The command line: 0 if all tokens are equal and the export lost nothing, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interchange",
        description="Greedy tokens in float32 of low-rank experts, by Overtone and, exported as LoRAs, by stock vLLM.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--prompts", type=int, default=50, help="number of prompts (default 50)")
    parser.add_argument(
        "--vllm-python", type=Path, help="interpreter of an environment that has vLLM; one is made if not given"
    )
    options = parser.parse_args()
    try:
        python = options.vllm_python or prepare(VLLM, _say)
        if not python.is_file():
            parser.error(f"--vllm-python {python} is not a file")
        with tempfile.TemporaryDirectory(prefix="overtone-interchange-") as folder:
            report = compare(Path(folder), python, options.prompts, _say)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key:18} {value}")
    return 0 if report["equal"] == report["prompts"] and report["export_error"] == 0 else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
