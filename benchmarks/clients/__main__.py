"""`python -m benchmarks.clients`: exits with 1 where one of them finds a fault."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.clients.schemathesis import attack_document
from benchmarks.clients.vllm_bench import bench_serve


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description="Let others' clients ask us.")
    parser.add_argument("--requests", type=int, default=64, help="of vllm bench serve (default 64)")
    parser.add_argument("--examples", type=int, default=50, help="of schemathesis, an operation (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of schemathesis (default 0)")
    parser.add_argument("--only", choices=("vllm", "schemathesis"), help="one of them instead of both")
    parser.add_argument("--bundle", type=Path, help="what to serve (default: the embedded models)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    arguments = parser.parse_args()
    if arguments.requests < 1 or arguments.examples < 1:
        parser.error("--requests and --examples must be at least 1")
    if (bundle := arguments.bundle) is None:
        from benchmarks.demo import zoo_bundle  # it merges at the first call

        bundle = zoo_bundle()
    report: dict[str, Any] = {}
    if arguments.only != "schemathesis":
        report["vllm_bench_serve"] = bench_serve(bundle, arguments.requests, _say)
    if arguments.only != "vllm":
        report["schemathesis"] = attack_document(bundle, arguments.examples, arguments.seed, _say)
    report["clean"] = clean(report)
    print(json.dumps(report, indent=2) if arguments.json else _text(report))
    return 0 if report["clean"] else 1


def clean(report: dict[str, Any]) -> bool:
    """Whether every request of vLLM's was answered, and schemathesis found nothing."""
    return not report.get("vllm_bench_serve", {}).get("failed") and not report.get("schemathesis", {}).get("failures")


def _text(report: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in report.items())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
