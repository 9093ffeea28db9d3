"""`python -m benchmarks.many_experts`."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.many_experts.bundle import first_experts, write_many
from benchmarks.many_experts.load import Counts, Users, measure
from benchmarks.many_experts.report import HEADER, line, row
from merge.bundle import Bundle, open_bundle
from serve.demo import zoo_bundle
from serve.demo.zoo.tasks import TASKS
from serve.engine import EngineConfig, build_engine

POPULARITIES = ("uniform", "zipf")
PROMPTS = 16
"""Prompts of each of the zoo's tasks."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_experts",
        description="Many experts and many users on one engine: throughput, planning and waits by popularity.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--bundle", type=Path, help="a bundle whose experts are copied (default: the tiny demo's)")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 1000, 5000])
    parser.add_argument("--users", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--popularity", nargs="+", choices=POPULARITIES, default=list(POPULARITIES))
    parser.add_argument("--slots", type=int, default=64, help="experts resident at once, at most (default 64)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate for each request (default 16)")
    parser.add_argument("--requests", type=int, default=1000, help="requests to measure in each run (default 1000)")
    parser.add_argument(
        "--host-bytes", type=int, default=2**30, help="bytes of host memory for experts (default 1 GiB)"
    )
    parser.add_argument("--quick", action="store_true", help="8 and 100 experts, 16 and 100 users, 200 requests a run")
    options = parser.parse_args()
    if options.quick:
        options.experts, options.users, options.requests = [8, 100], [16, 100], 200
    source = open_bundle(options.bundle or zoo_bundle())
    with tempfile.TemporaryDirectory(prefix="overtone-many-") as folder:
        _say(f"writing {max(options.experts)} experts")
        bundle = write_many(Path(folder) / "bundle", source, max(options.experts))
        rows = []
        if not options.json:
            print(HEADER)
        for one in run(bundle, options):
            rows.append(one)
            if not options.json:
                print(line(one), flush=True)
    if options.json:
        print(json.dumps({"slots": options.slots, "tokens": options.tokens, "rows": rows}))


def run(bundle: Bundle, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure all combinations. Each number of experts gets a new engine."""
    prompts = _prompts(bundle)
    for experts in options.experts:
        part, counts = first_experts(bundle, experts), Counts()
        config = EngineConfig(
            max_expert_slots=min(options.slots, experts),
            max_expert_host_bytes=options.host_bytes,
            kv_cache_bytes=256 * 2**20,
        )
        engine = build_engine(part, config, counts)
        try:
            for users in options.users:
                for popularity in options.popularity:
                    _say(f"{experts} experts, {users} users, {popularity}")
                    load = Users(part.expert_names, popularity, prompts, options.tokens)
                    yield row(
                        experts,
                        users,
                        popularity,
                        measure(engine.engine, counts, load, users, users + options.requests // 4, options.requests),
                    )
        finally:
            asyncio.run(engine.shutdown(0.0))


def _prompts(bundle: Bundle) -> Sequence[tuple[int, ...]]:
    tokenizer = AutoTokenizer.from_pretrained(bundle.backbone_dir, local_files_only=True)
    texts = [example.prompt for task in TASKS for example in task.generate("test", PROMPTS, 0)]
    return [tuple(tokenizer(text)["input_ids"]) for text in texts]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
