"""`python -m benchmarks.peers`: the same load over HTTP on Overtone and on others, in turn and repeatedly."""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.model import Shape, write_loras, write_model
from benchmarks.peers.environment import PeerError
from benchmarks.peers.servers import NAMES, USERS, running
from serve.bench.load import run
from serve.bench.summary import Summary, summarise
from serve.bench.workload import Arrivals, Lengths, Popularity, Workload

EXPERTS = [f"e{i}" for i in range(8)]
DENSITY = 0.01
RANK = 16
LOADS = {
    "1 user, backbone": (1, Popularity("backbone")),
    "1 user, one expert": (1, Popularity("identical")),
    "8 users, backbone": (USERS, Popularity("backbone")),
    "8 users, one expert": (USERS, Popularity("identical")),
    "8 users, 8 experts": (USERS, Popularity("distinct")),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--servers", default=",".join(NAMES), help=f"any of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3, help="answers of each user in a round (default 3)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer (default 32)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the times per token into this file")
    parser.add_argument("--quick", action="store_true", help="a model of two layers")
    options = parser.parse_args()
    names = [name for name in options.servers.split(",") if name]
    try:
        report = measure(names, options.rounds, options.requests, options.tokens, options.quick)
    except PeerError as error:
        sys.exit(f"error: {error}")
    if options.plot:
        from benchmarks.peers.plot import draw  # matplotlib is needed for pictures alone

        draw(report, options.plot)
    print(json.dumps(report) if options.json else table(report))


def measure(names: list[str], rounds: int, requests: int, tokens: int, quick: bool) -> dict[str, Any]:
    """Run the benchmark: the document that `--json` prints.

    Raises:
        PeerError: a server is unknown, or cannot be installed or started.
    """
    shape = Shape(layers=2) if quick else Shape()
    found: dict[str, dict[str, list[Summary]]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory(prefix="overtone-peers-") as folder:
        _say("writing the model, its experts and LoRAs")
        bundle = write_model(Path(folder) / "bundle", shape, len(EXPERTS), DENSITY)
        write_loras(Path(folder) / "loras", bundle, EXPERTS, RANK)
        with running(names, bundle.path, Path(folder) / "loras", EXPERTS, _say) as servers:
            for number in range(rounds):
                for place, (load, (users, popularity)) in enumerate(LOADS.items()):
                    seed = number * len(LOADS) + place  # no load's prompts are another's
                    workload = Workload(
                        users * requests,
                        users,
                        popularity,
                        Lengths(1, 1),
                        Lengths(tokens, tokens),
                        seed,
                        prompts=texts(users * (requests + 1), 32, shape.vocabulary, seed),
                    )
                    for name, (server, target) in servers.items():
                        if popularity.kind != "backbone" and not target.experts:
                            continue
                        _say(f"round {number + 1} of {rounds}: {load}, {name}")
                        with server.awake():
                            answers = asyncio.run(run(target, workload, Arrivals("closed", users=users)))
                        found[name].setdefault(load, []).append(summarise(answers))
    return {
        "parameters": bundle.manifest.backbone_bytes // 2,
        "density": DENSITY,
        "lora_rank": RANK,
        "rounds": rounds,
        "servers": {
            name: {load: _figures(summaries) for load, summaries in loads.items()} for name, loads in found.items()
        },
    }


def texts(count: int, words: int, vocabulary: int, seed: int) -> tuple[str, ...]:
    """Prompts of random words of the model's own vocabulary."""
    drawn = np.random.default_rng(seed).integers(0, vocabulary, (count, words))
    return tuple(" ".join(f"w{word}" for word in row) for row in drawn)


def table(report: dict[str, Any]) -> str:
    """A line for each server and load."""
    lines = [f"{'server':>14} {'load':>20} {'TTFT ms':>9} {'TPOT ms':>9} {'tok/s':>8} {'failed':>6}"]
    for name, loads in report["servers"].items():
        for load, figures in loads.items():
            lines.append(
                f"{name:>14} {load:>20} {figures['ttft_ms']:9.1f} {figures['tpot_ms']:9.1f}"
                f" {figures['tokens_per_s']:8.1f} {figures['failed']:6}"
            )
    return "\n".join(lines)


def _figures(summaries: list[Summary]) -> dict[str, Any]:
    """Medians over the rounds, with the rounds' extremes of the time per token; NaN if nothing was answered."""
    ttft = [s.ttft_ms.p50 for s in summaries if s.ttft_ms is not None]
    tpot = [s.tpot_ms.p50 for s in summaries if s.tpot_ms is not None]
    errors = sorted({error for summary in summaries for error in summary.errors})
    return {
        "ttft_ms": round(statistics.median(ttft), 2) if ttft else float("nan"),
        "tpot_ms": round(statistics.median(tpot), 2) if tpot else float("nan"),
        "tpot_ms_min": min(tpot, default=float("nan")),
        "tpot_ms_max": max(tpot, default=float("nan")),
        "tokens_per_s": round(statistics.median(s.tokens_per_s for s in summaries), 1),
        "failed": sum(summary.failed for summary in summaries),
        "errors": errors,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
