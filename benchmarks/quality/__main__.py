"""The command: `python -m benchmarks.quality`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks.quality.curves import scaling_curves
from benchmarks.quality.domain import Domain
from benchmarks.quality.markdown import markdown
from benchmarks.quality.plans import PLANS, SMALL, Plan, build_domain
from benchmarks.quality.report import entry
from benchmarks.quality.routing import measure_routing
from benchmarks.quality.store import OutOfTimeError, Store, finished_results
from benchmarks.quality.table import INDIVIDUAL, Table
from benchmarks.zoo.matching import one_thread

UNFINISHED = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen, others = _domain_of(given)
    if chosen == "chat":
        from benchmarks.quality.chat.command import main as chat_main  # whose options are others

        chat_main(others)
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="Quality of merging, by domain.")
    parser.add_argument(
        "--domain",
        choices=sorted([*PLANS, "chat"]),
        required=True,
        help="chat has other options: --domain chat --help",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs, not what it says")
    parser.add_argument("--seeds", type=int, help="first seeds to measure (default: what the domain's plan says)")
    parser.add_argument("--no-curves", action="store_true", help="leave Frank-Wolfe's scaling curves out")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the pictures into this folder")
    parser.add_argument("--cache", type=Path, help="folder of results and fine-tunes (default: the cache directory)")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"begin nothing new after this time, print what is finished, exit with status {UNFINISHED}",
    )
    options = parser.parse_args(given)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    start = time.monotonic()
    store = Store(options.cache, lambda: options.seconds is None or time.monotonic() - start < options.seconds)
    plan = PLANS[options.domain].shortened(options.quick, options.seeds, options.no_curves)
    unfinished = False
    try:
        domain = build_domain(options.domain, store, options.quick)
        with one_thread() if options.domain in SMALL else nullcontext():
            measure(domain, plan, store)
    except OutOfTimeError:
        unfinished = True
    except RuntimeError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    document = collect(domain, plan, store.finished())
    if options.plots:
        from benchmarks.quality.plots import draw  # matplotlib is needed for pictures alone

        draw(document, options.plots)
    print(json.dumps(document, indent=2) if options.json else markdown(document))
    if unfinished:
        parser.exit(UNFINISHED, "the time is over; what is finished is kept, run the command again\n")


def _domain_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The domain that is asked for, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--domain")
    found, others = parser.parse_known_args(arguments)
    return found.domain, others


def measure(domain: Domain, plan: Plan, store: Store) -> None:
    """Measure what a plan asks for, the columns that matter most first.

    Raises:
        OutOfTimeError: the store's time is over.
    """
    table = Table(domain, store, _say)
    for seed in range(plan.seeds):
        table.individual(seed)
        measure_routing(domain, store, seed)
        first, *others = plan.cuts_in_order()
        for row in plan.rows:
            table.backbone(row, seed)
            table.with_experts(row, first, seed)
        for cut in others:
            for row in plan.rows:
                if cut in plan.cuts(row) and seed < plan.seeds_of(cut):
                    table.with_experts(row, cut, seed)
    if plan.curves:
        scaling_curves(domain, store, 0, _say)


def collect(domain: Domain, plan: Plan, store: Store) -> dict[str, Any]:
    """Put together what is finished; seeds, rows and columns that are not are left out."""
    table = Table(domain, store)
    seeds = range(plan.seeds)
    individual = finished_results([partial(table.individual, seed) for seed in seeds])
    routing = [
        found for found in finished_results([partial(measure_routing, domain, store, seed) for seed in seeds]) if found
    ]
    sizes = table.sizes()
    rows = [entry(INDIVIDUAL, None, individual, individual, sizes)] if individual else []
    for row in plan.rows:
        alone = finished_results([partial(table.backbone, row, seed) for seed in range(plan.seeds)])
        if not alone:
            continue
        chosen = {"lambda": table.scale(row)}
        rows.append(entry(row.name, None, alone, individual[: len(alone)], sizes, chosen=chosen))
        for cut in plan.cuts(row):
            cells = finished_results(
                [partial(table.with_experts, row, cut, seed) for seed in range(plan.seeds_of(cut))]
            )
            if cells:
                n = len(cells)
                factor = {"mu_factor": table.factor()} if cut.kind == "data-free" else {}
                parts = (cells, individual[:n], sizes, routing[:n], alone[:n])
                rows.append(entry(row.name, cut, *parts, chosen=chosen | factor))
    curves = finished_results([partial(scaling_curves, domain, store, 0, _say)]) if plan.curves else []
    return {
        "domain": domain.name,
        "tasks": list(domain.tasks),
        "settings": dict(domain.settings),
        "calibrated": domain.calibrated_as,
        "backbone_bytes": sizes[0],
        "matrix_bytes": sizes[1],
        "head_bytes": domain.head_bytes(),
        "router": [{key: value for key, value in vars(found).items() if key != "chosen"} for found in routing],
        "rows": rows,
        "curves": curves[0] if curves else None,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
