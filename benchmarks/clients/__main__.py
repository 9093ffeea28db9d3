"""`python -m benchmarks.clients`: exits with 1 where one of them finds a fault."""

import sys
from typing import Any

from benchmarks.clients.schemathesis import attack_document
from benchmarks.clients.vllm_bench import bench_serve
from benchmarks.server import at_least, bundle_of, command_line, show


def main() -> int:
    """Run the command line."""
    parser = command_line("benchmarks.clients", "Let others' clients ask us.")
    parser.add_argument("--requests", type=at_least(1), default=64, help="of vllm bench serve (default 64)")
    parser.add_argument("--examples", type=at_least(1), default=50, help="of schemathesis, an operation (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of schemathesis (default 0)")
    parser.add_argument("--only", choices=("vllm", "schemathesis"), help="one of them instead of both")
    arguments = parser.parse_args()
    bundle = bundle_of(arguments)
    report: dict[str, Any] = {}
    if arguments.only != "schemathesis":
        report["vllm_bench_serve"] = bench_serve(bundle, arguments.requests, _say)
    if arguments.only != "vllm":
        report["schemathesis"] = attack_document(bundle, arguments.examples, arguments.seed, _say)
    report["clean"] = clean(report)
    text = "\n".join(f"{name}: {value}" for name, value in report.items())
    return show(arguments, report, text, report["clean"])


def clean(report: dict[str, Any]) -> bool:
    """Whether every request of vLLM's was answered, and schemathesis found nothing."""
    return not report.get("vllm_bench_serve", {}).get("failed") and not report.get("schemathesis", {}).get("failures")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
