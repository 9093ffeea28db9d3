"""`python -m benchmarks.capacity`."""

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.capacity.card import Card, card_of_decode
from benchmarks.capacity.simulate import Scenario
from benchmarks.capacity.sweep import plot, sweep


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity",
        description="Simulate replicas and experts, by step times measured here, in a file, or given for a card.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--steps", type=Path, help="a document of python -m benchmarks.decode --json")
    card = parser.add_argument_group("a card's speeds, instead of measured ones (all of them, or none)")
    for name, text in _CARD.items():
        card.add_argument(f"--{name}", type=float, help=text)
    parser.add_argument("--load-gb-per-s", type=float, default=4.0, help="speed from host memory to a slot (default 4)")
    parser.add_argument("--dollars-per-hour", type=float, help="price of one replica")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--experts", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--rate",
        type=float,
        help="requests a second to compare at; 70 %% of the best if not given",
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="Zipf's exponent (default 1)")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="draw the rate at which each placement breaks (extra `bench`)")
    parser.add_argument("--validate", action="store_true", help="compare with two real replicas (`ray`, `bench`)")
    options = parser.parse_args()
    try:
        report = _validated(options) if options.validate else _swept(options)
    except ValueError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps(report))
    else:
        _show(report)


_CARD = {
    "base-ms": "a step's fixed time",
    "sequence-ms": "for each sequence",
    "first-expert-ms": "if any sequence has an expert",
    "expert-ms": "for each distinct expert",
    "prompt-ms": "for each prompt token",
    "expert-mb": "bytes of an expert, in millions",
}


def _card(options: argparse.Namespace) -> Card:
    given = {name: getattr(options, name.replace("-", "_")) for name in _CARD}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    load = options.load_gb_per_s * 1e9
    if not missing:
        return Card(
            base_ms=given["base-ms"],
            sequence_ms=given["sequence-ms"],
            first_expert_ms=given["first-expert-ms"],
            expert_ms=given["expert-ms"],
            prompt_ms=given["prompt-ms"],
            expert_bytes=given["expert-mb"] * 1e6,
            load_bytes_per_s=load,
            dollars_per_hour=options.dollars_per_hour,
        )
    if len(missing) < len(given):
        raise ValueError(f"a card needs {', '.join(missing)}, too")
    if options.steps is not None:
        return card_of_decode(json.loads(options.steps.read_text()), load, options.dollars_per_hour)
    from benchmarks.decode.measure import measure  # torch, which a simulation of given times does not need
    from benchmarks.decode.model import Shape

    with tempfile.TemporaryDirectory(prefix="overtone-capacity-") as folder:
        report = measure(Path(folder), Shape(layers=4), None, [], 2, _say)
    return card_of_decode(report, load, options.dollars_per_hour)


def _swept(options: argparse.Namespace) -> dict[str, Any]:
    card = _card(options)
    # A reply takes one step that reads its prompt and `output` steps in a full batch of as many experts.
    full = options.output * card.step_seconds(options.batch, min(options.batch, options.slots), 0) / options.batch
    best = options.replicas / (full + options.prompt * card.prompt_ms / 1e3)
    base = Scenario(
        placement="random",
        replicas=options.replicas,
        experts=1,
        slots=options.slots,
        rate=0.7 * best if options.rate is None else options.rate,
        alpha=options.alpha,
        batch=options.batch,
        prompt=options.prompt,
        output=options.output,
        seconds=options.seconds,
        seed=options.seed,
    )
    rows = sweep(card, base, options.experts, _say)
    if options.plot is not None:
        plot(rows, options.plot)
    return {"card": asdict(card), "rows": rows}


def _validated(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.capacity.validate import validate  # Ray and httpx, of the extras ray and bench

    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what its processes log
        return validate(options.rate, options.seconds, options.seed, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(report: dict[str, Any]) -> None:
    for row in report.get("rows", ()):
        print(
            f"{row['experts']:6} experts  {row['placement']:10}  up to {row['highest_rate']:8.2f} req/s  at "
            f"{row['rate']:.2f}: TTFT p50 {row['ttft_s']['p50']:.3f} p99 {row['ttft_s']['p99']:.3f} s, "
            f"{row['expert_bytes_per_s'] / 1e6:.1f} MB/s of experts, "
            f"{row['replica_seconds_per_million_tokens']:.0f} replica-seconds per million tokens"
        )
    if "loops" in report:
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
