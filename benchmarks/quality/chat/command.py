"""The chat domain's command line."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from benchmarks.quality.chat.pool import Pool
from benchmarks.quality.chat.report import Plan, as_markdown, collect, measure
from benchmarks.quality.chat.table import ChatTable, Column
from benchmarks.quality.rows import ROWS, Row
from benchmarks.quality.store import OutOfTimeError, Store
from benchmarks.zoo.command import Parser, positive
from benchmarks.zoo.real.bench import Bench, fine_tunes
from merge.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from merge.lora import is_adapter, open_adapter
from serve.demo.zoo.real.base import base_dir, zoo_dir
from serve.demo.zoo.real.packages import BaseUnavailableError

UNFINISHED = 3
KINDS = ("lora", "full")
FORMS = ("auto", "low_rank", "both", "sparse")
BUDGETS = (0.25, 0.5, 1.0)
POOLS = (4, 8)

KNOTS = Row("KnOTS-TIES", "knots", {}, (0.5, 1.0, 1.5), spatial=True)


def _known(name: str, called: str | None = None) -> Row:
    """A row of the other domains, under another name if one is given."""
    row = next(row for row in ROWS if row.name == name)
    return row if called is None else replace(row, name=called)


BACKBONES: Mapping[str, Row] = {
    "base": _known("pretrained", "base"),
    "average": _known("linear", "average"),
    "task_arithmetic": _known("task arithmetic"),
    "ties": _known("TIES"),
    "fr": _known("FR official"),
    "fr_control": _known("shrink control", "FR's control"),
    "iso_c": _known("Iso-C"),
    "tsv_m": _known("TSV-M"),
    "frank_wolfe": _known("Frank-Wolfe soft"),
    "knots": KNOTS,
}
"""The rows of this domain, by what the command line calls them."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    start = time.monotonic()
    store = Store(options.cache, lambda: options.seconds is None or time.monotonic() - start < options.seconds)
    plan = Plan(
        tuple(BACKBONES[name] for name in options.backbones),
        tuple(
            Column(form, budget, prompts)
            for prompts in ((False, True) if options.prompts == "both" else (options.prompts == "with",))
            for budget in sorted(options.budgets, reverse=True)
            for form in options.forms
        ),
        None if options.tasks is None else tuple(options.tasks),
    )
    try:
        benches = [
            Bench(base_dir(), options.limit, options.calibration, options.distill, seed)
            for seed in range(1, len(options.models) + 1)
        ]
    except BaseUnavailableError as error:
        sys.exit(f"error: {error}")
    unfinished = False
    try:
        for tables in _pools(options, benches, store):
            for table in tables:
                measure(table, plan)
    except OutOfTimeError:
        unfinished = True
    document = {
        "domain": "chat",
        "limit": options.limit,
        "calibration": options.calibration,
        "pools": [collect(tables, plan) for tables in _pools(options, benches, store.finished())],
    }
    print(json.dumps(document, indent=2) if options.json else as_markdown(document))
    if unfinished:
        print("the time is over; what is finished is kept, run the command again", file=sys.stderr)
        sys.exit(UNFINISHED)


def _pools(options: argparse.Namespace, benches: Sequence[Bench], store: Store) -> Iterator[list[ChatTable]]:
    """The tables of each kind and size of pool, one for each folder of models."""

    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    try:
        others = {f"also {i + 1}": _opened(path, benches[0].base) for i, path in enumerate(options.also)}
    except CheckpointError as error:
        sys.exit(f"error: --also: {error}")
    for kind in options.kinds:
        found = [
            fine_tunes(bench.base, folder / kind, None) for bench, folder in zip(benches, options.models, strict=True)
        ]
        for folder, tunes in zip(options.models, found, strict=True):
            if not tunes:
                sys.exit(
                    f"error: no fine-tunes in {folder / kind}: `python -m benchmarks.zoo.real.train` makes them, or "
                    f"leave --kinds {kind} out"
                )
        sizes = dict.fromkeys(min(size, *map(len, found)) for size in options.pools)
        for size in sizes:
            yield [
                ChatTable(
                    Pool(kind, dict(list(tunes.items())[:size]), bench, store, others), store, say, options.halvings
                )
                for bench, tunes in zip(benches, found, strict=True)
            ]


def _opened(directory: Path, base: Checkpoint) -> Checkpoint:
    return open_adapter(directory, base) if is_adapter(directory) else open_checkpoint(directory)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.quality --domain chat",
        description="Backbones and experts of a real chat model's fine-tunes.",
        epilog=f"Results are kept cell by cell: the same command continues where the last one stopped. It exits with "
        f"status {UNFINISHED} if --seconds ended it.",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        type=Path,
        default=[zoo_dir()],
        help="folders with lora/ and full/, one for each seed of their training (default: the cache's)",
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--pools", nargs="+", type=positive, default=POOLS, help="fine-tunes that are merged together")
    parser.add_argument(
        "--also",
        nargs="+",
        type=Path,
        default=[],
        help="directories of more fine-tunes that are merged into the backbone and not scored",
    )
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=tuple(BACKBONES))
    parser.add_argument(
        "--forms", nargs="*", choices=FORMS, default=FORMS, help="forms of experts; none: backbones alone"
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="per cent of the backbone's bytes")
    parser.add_argument(
        "--prompts",
        choices=("without", "with", "both"),
        default="both",
        help="extract experts without or with prompts (default both)",
    )
    parser.add_argument("--tasks", nargs="+", help="tasks that are scored (default: all of the pool)")
    parser.add_argument(
        "--halvings",
        type=int,
        default=0,
        help="halve a row's smallest λ up to N times, until the base's general abilities are kept (default 0)",
    )
    parser.add_argument("--limit", type=positive, default=60, help="held-out requests a task (default 60)")
    parser.add_argument("--calibration", type=positive, default=48, help="prompts that an expert is cut with")
    parser.add_argument("--distill", type=int, help="steps of distillation (default: the recipe's)")
    parser.add_argument("--seconds", type=float, help="begin nothing new after this time")
    parser.add_argument("--cache", type=Path, help="folder of the results (default: the cache directory)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser
