"""`python -m benchmarks.router --data DIR`: the router on what people wrote, beside other text classifiers."""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.router.classifiers import classifiers
from benchmarks.router.data import DataError, Dataset, many_tasks, read
from benchmarks.router.many import many_experts
from benchmarks.router.measure import measure

TASK_PROMPTS = 100
"""Prompts of each task of `--tasks`."""

ASKED = 1000
"""Prompts that the routers of many experts are asked."""

PROMPTS = {"clinc-domains": (16, 32, 64, 128, None), "typos": (128,), "chats": (128,), "embedded": (32, 64)}
"""Prompts an expert that the data is trained on; None: all. Other data: all."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="holds clinc150.json, banking77.json, real_tasks.jsonl"
    )
    parser.add_argument("--only", nargs="+", help="names of the data to measure (default: all)")
    parser.add_argument("--features", nargs="+", help="what to compare (default: all that can be compared here)")
    parser.add_argument("--backbone", type=Path, help="a model directory: compare its hidden states, too")
    parser.add_argument("--tokens", type=int, help="time decisions on prompts of this number of tokens")
    parser.add_argument(
        "--tasks", nargs="+", type=int, help=f"measure this number of generated tasks of {TASK_PROMPTS} prompts"
    )
    parser.add_argument("--prompts", nargs="+", type=int, help="prompts an expert (default: as the data's rows)")
    parser.add_argument(
        "--experts",
        nargs="+",
        type=int,
        help="measure decisions among this number of experts with random heads; needs no data",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    options = parser.parse_args(arguments)
    known = list(classifiers(options.backbone))
    if unknown := sorted(set(options.features or ()) - set(known)):
        parser.error(f"--features: {unknown[0]!r} is not one of {', '.join(known)}")
    try:
        data = read(options.data)
    except DataError as error:
        parser.error(str(error))
    if unknown := sorted(set(options.only or ()) - set(data)):
        parser.error(f"--only: {unknown[0]!r} is not one of {', '.join(data)}")
    rows: list[dict[str, Any]] = []
    for experts in options.experts or ():
        rows.append(many_experts(experts, [text for text, _ in data["clinc-intents"].test][:ASKED]))
        line = f"{experts:>7} experts  p50 {rows[-1]['p50_ms']:.2f} ms  p99 {rows[-1]['p99_ms']:.2f} ms"
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)
    parts = [many_tasks(data["clinc-intents"], tasks, TASK_PROMPTS) for tasks in options.tasks or ()]
    if not (options.experts or options.tasks):
        parts = [
            data[name] if count is None else data[name].first(count)
            for name in options.only or data
            for count in options.prompts or PROMPTS.get(name, (None,))
        ]
    for part in parts:
        for features in options.features or known:
            rows.append(_in_a_process(part, features, options.backbone, options.tokens))
            print(_line(rows[-1]), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))


def _in_a_process(data: Dataset, features: str, backbone: Path | None, tokens: int | None) -> dict[str, Any]:
    """Measure one row in a new process, so that its peak memory does not include earlier rows."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return asdict(pool.apply(measure, (data, features, backbone, tokens)))


def _line(row: dict[str, Any]) -> str:
    def share(key: str) -> str:
        return "    -" if row[key] is None else f"{row[key]:.3f}"

    chats = ""
    if row["chat_followed"] is not None:
        chats = "  chats: " + "  ".join(
            f"{key} {share('chat_' + key)}" for key in ("followed", "alone", "moved", "missed")
        )
    return (
        f"{row['data']:<14} {row['prompts_per_task']:>5} {row['features']:<26} accuracy {share('accuracy')}  "
        f"routed {share('routed')}  mixed {share('mixed')}  auroc {share('auroc')}  "
        f"ood recall {share('ood_recall')}  ece {share('ece')}  "
        f"{row['train_cpu_seconds']:6.1f} s  {row['train_peak_mb']:5.0f} MB  p99 {row['p99_ms']:.2f} ms{chats}"
    )


if __name__ == "__main__":
    main()
