"""`python -m benchmarks.sampler`."""

import argparse
import json
from typing import Any

import torch

from benchmarks.sampler.rows import measure_rows
from benchmarks.sampler.steps import measure_steps
from kernels.compiled import ISAS, library


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampler",
        description="Times drawing tokens without a model: rows a second, compiled beside torch, and whole steps.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=20, help="number of times that each case is timed (default 20)")
    parser.add_argument("--only", choices=("rows", "steps"), help="measure one of the two")
    options = parser.parse_args()
    kernels = library()
    report: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "kernels": ISAS[kernels.isa] if kernels else "torch",
    }
    if options.only != "steps":
        report |= measure_rows(options.rounds)
    if options.only != "rows":
        report |= measure_steps(options.rounds)
    if options.json:
        print(json.dumps(report))
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    print(f"{report['threads']} threads, {report['kernels']}")
    if "rows" in report:
        head = f"{'vocabulary':>10} {'logits':<13} {'setting':<21}"
        print(f"{head} {'torch ms':>9} {'compiled':>9} {'rows/s':>8} {'ratio':>6}")
        for row in report["rows"]:
            cells = (row["compiled_ms"], row["compiled_rows_per_s"], row["ratio"])
            compiled, rate, ratio = ("-" if cell is None else cell for cell in cells)
            print(
                f"{row['vocab']:>10,} {row['distribution']:<13} {row['setting']:<21} {row['reference_ms']:>9.4f} "
                f"{compiled:>9} {rate:>8} {ratio:>6}"
            )
        print(f"slowest row, compiled, ms: {report['slowest_ms']}; limit {report['row_limit_ms']}")
    if "cases" in report:
        print(f"{'case':<36} {'rows':>4} {'ms':>8} {'cpu':>8}")
        for case in report["cases"]:
            print(f"{case['name']:<36} {case['rows']:>4} {case['ms']:>8.2f} {case['cpu_ms']:>8.2f}")
        for name, figure in report["summary"].items():
            print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
