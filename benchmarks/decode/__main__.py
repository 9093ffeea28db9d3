"""`python -m benchmarks.decode`."""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from benchmarks.decode.backbones import measure_backbones
from benchmarks.decode.measure import measure
from benchmarks.decode.model import Kind, Shape
from benchmarks.decode.peers import COMPILED, NAMES, QUANTISED, with_quantised
from merge.bundle.quantised import SCHEMES


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description="Step times of the engine on a 372 M parameter model."
    )
    known = (*NAMES, *COMPILED, *QUANTISED)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--context", type=int, help="measure steps at contexts up to this many tokens")
    parser.add_argument(
        "--peers",
        nargs="?",
        const=",".join(NAMES),
        default="",
        help=f"any of {', '.join(known)}",
    )
    parser.add_argument(
        "--experts",
        choices=get_args(Kind),
        default="sparse",
        help="a bundle's sparse or low-rank experts, or LoRA adapters of rank 16, of which peers serve the same files",
    )
    parser.add_argument("--storage", choices=("int8", "bf16"), default="int8", help="storage of sparse experts' values")
    parser.add_argument(
        "--sampling", action="store_true", help="also measure steps whose tokens are sampled with filters and penalties"
    )
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=Shape.vocabulary,
        help="vocabulary of the model (default 16,000); 151,936 is that of Qwen2.5, with 494 M parameters",
    )
    parser.add_argument(
        "--backbone",
        choices=tuple(SCHEMES),
        help="measure steps over the backbone in 8 or 4 bits beside bfloat16; llama.cpp and OpenVINO also run their "
        "own formats",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="four layers, two rounds")
    options = parser.parse_args()
    names = [name for name in options.peers.split(",") if name]
    if options.sampling and options.context is not None:
        parser.error("--sampling cannot be used with --context")
    if options.vocabulary < 1:
        parser.error("--vocabulary must be at least 1")
    layers, rounds = (4, 2) if options.quick else (Shape.layers, options.rounds)
    shape = Shape(layers=layers, vocabulary=options.vocabulary)
    if options.backbone and (options.sampling or options.context is not None):
        parser.error("--backbone cannot be used with --sampling or --context")
    if options.backbone and options.experts == "lora16":
        parser.error("--backbone is for sparse and low_rank8_int8 experts")
    if options.backbone:
        with tempfile.TemporaryDirectory(prefix="overtone-decode-") as folder:
            wanted = with_quantised(names)
            found = measure_backbones(Path(folder), shape, options.backbone, wanted, rounds, _say, options.experts)
        print(json.dumps(found) if options.json else json.dumps(found, indent=2))
        return
    with tempfile.TemporaryDirectory(prefix="overtone-decode-") as folder:
        report = measure(
            Path(folder),
            shape,
            options.context,
            names,
            rounds,
            _say,
            options.storage,
            options.experts,
            options.sampling,
        )
    if options.json:
        print(json.dumps(report))
    else:
        _show(report)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(report: dict[str, Any]) -> None:
    tables = ("steps_ms", "prefill_tokens_per_s")
    for key, value in report.items():
        if key not in tables:
            print(f"{key:22} {value}")
    for name, cases in report["steps_ms"].items():
        for case, found in cases.items():
            print(f"{name:20} {case:20} {found['median']:8.2f} ms ({found['min']:.2f} to {found['max']:.2f})")
    for name, cases in report.get("prefill_tokens_per_s", {}).items():
        for case, found in cases.items():
            print(f"{name:20} {case:20} {found:8} prompt tokens/s")


if __name__ == "__main__":
    main()
