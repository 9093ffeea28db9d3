"""What experts keep of a real model's fine-tunes, by form and bytes: `python -m benchmarks.experts_real --json`.

LoRA and full fine-tunes of the real zoo; a backbone that is the base and one that is their average; experts that are
cut without prompts and with some. Each cell is the exact match on held-out requests with the task's own expert, and
its share of the fine-tune's. Full fine-tunes are looked for under `--full`; `python -m benchmarks.zoo.real.train
--full` makes them.

With `--storage bf16 int8 int4` every backbone is also rounded. An expert is then cut against the rounded backbone, and
beside it the one that was cut against the backbone in bfloat16 is put over the rounded one. KL to the fine-tune on the
fine-tune's replies to held-out requests is measured, too, and the perplexity of the rounded backbone on plain text.
With `--routed` a router of all the zoo's tasks is trained, and a request that it sends elsewhere counts 0.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers.utils import logging

from benchmarks.quality.domain import Requests
from benchmarks.quality.routing import routed
from benchmarks.zoo.command import Parser, positive
from benchmarks.zoo.real.backbones import PLAIN, Backbones, Rounded
from benchmarks.zoo.real.bench import Bench, fine_tunes
from benchmarks.zoo.real.fidelity import Divergence, Fidelity
from merge.bundle.quantised import SCHEMES
from merge.check.general import general_reference
from merge.checkpoint import Checkpoint
from merge.experts.running import assign, build_model
from merge.progress import Progress
from serve.demo.zoo.real.base import base_dir, zoo_dir
from serve.demo.zoo.real.packages import BaseUnavailableError
from serve.demo.zoo.real.tasks import TASKS

FORMS = ("auto", "low_rank", "both", "sparse")
BUDGETS = (0.25, 0.5, 1.0, 2.0)

ROUTED = 64
"""Training prompts a task that the router learns from."""


@dataclass(frozen=True)
class Row:
    """One fine-tune's expert.

    Attributes:
        kind: `lora` or `full`.
        backbone: `base` or `linear`.
        task: its name.
        form: of the expert.
        budget: per cent of the backbone's bytes that it may take.
        prompts: whether it was cut with prompts.
        bytes: per cent that it takes.
        accuracy: of backbone + expert on held-out requests.
        fine_tune: of the fine-tune on the same requests.
        alone: of the backbone in bfloat16; None with `--storage`.
        divergence: mean KL to the fine-tune on the calibration prompts, nats a token; None without prompts.
        storage: of the backbone.
        cut_against: the storage of the backbone that the expert was cut against.
        kl: KL to the fine-tune on held-out requests, nats a token; None without `--storage`.
        routed: the accuracy if a request that the router does not send to its expert counts as wrong; None without
            `--routed`.
    """

    kind: str
    backbone: str
    task: str
    form: str
    budget: float
    prompts: bool
    bytes: float
    accuracy: float
    fine_tune: float
    alone: float | None
    divergence: float | None
    storage: str = PLAIN
    cut_against: str = PLAIN
    kl: Divergence | None = None
    routed: float | None = None

    def __str__(self) -> str:
        how = f"{self.form} {self.budget:g} % {'with' if self.prompts else 'without'} prompts"
        told = f"{self.accuracy:.3f} of {self.fine_tune:.3f}"
        if self.kl is not None:
            how += f", cut against {self.cut_against} over {self.storage}"
            told += f", KL {self.kl.mean:.4f}, 99 % {self.kl.p99:.4f}"
        if self.routed is not None:
            told += f", routed {self.routed:.3f}"
        return f"{self.kind}, {self.backbone}, {self.task}, {how}: {told}"


@dataclass(frozen=True)
class Refused:
    """An expert that cannot be cut, for example because one entry a row is more than its budget.

    Attributes:
        kind, backbone, task, form, budget, prompts: as a `Row`'s.
        why: the error's text.
    """

    kind: str
    backbone: str
    task: str
    form: str
    budget: float
    prompts: bool
    why: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.backbone}, {self.task}, {self.form} {self.budget:g} %: {self.why}"


def measure(
    bench: Bench, kind: str, tunes: Mapping[str, Checkpoint], options: argparse.Namespace, backbones: Backbones
) -> Iterator[Row | Refused]:
    """All experts of one kind of fine-tunes."""
    plans = [
        (form, budget, prompts)
        for form in options.forms
        for budget in options.budgets
        for prompts in ((False, True) if options.prompts == "both" else (options.prompts == "with",))
    ]
    storages: Sequence[str] = options.storage or (PLAIN,)
    fidelity = Fidelity(bench) if options.storage else None
    chosen = routes(bench, tunes) if options.routed else None
    with Progress(not options.quiet).stage(
        f"{kind} experts", len(options.backbones) * len(tunes) * len(plans)
    ) as shown:
        for task, fine_tune in tunes.items():
            tuned = bench.score(fine_tune, task)
            reference = fidelity and fidelity.reference(fine_tune, task)
            for name in options.backbones:
                alone = None if options.storage else bench.score(backbones(name), task)
                for form, budget, prompts in plans:
                    settings = {"form": form, "budget": budget / 100}
                    asked = (kind, name, task, form, budget, prompts)
                    known: list[Row] = []
                    for against in storages:
                        merged = None if against == PLAIN else backbones.floats(name)
                        try:
                            expert, size, divergence = bench.cut(
                                task, fine_tune, backbones(name, against, prompts), settings, prompts, merged
                            )
                        except ValueError as error:
                            yield Refused(*asked, str(error))
                            continue
                        for storage in storages if against == PLAIN else (against,):
                            same = next((row for row in known if row.storage == storage), None)
                            if same is not None and expert.metadata.get("selection") == "whole":
                                # A LoRA that is kept whole is the same one over every backbone.
                                yield replace(same, divergence=divergence, cut_against=against)
                                continue
                            backbone = backbones(name, storage, prompts)
                            marks = bench.marks(backbone, task, expert)
                            kl = fidelity.divergence(reference, backbone, expert) if fidelity and reference else None
                            kept = fmean(map(prod, zip(marks, chosen[task], strict=True))) if chosen else None
                            row = Row(
                                *asked, 100 * size, fmean(marks), tuned, alone, divergence, storage, against, kl, kept
                            )
                            known.append(row)
                            yield row
                    shown()


def routes(bench: Bench, tasks: Iterable[str]) -> dict[str, list[bool]]:
    """Whether a router of all the zoo's tasks sends the held-out requests of some of them to their own expert."""
    train = {
        task.name: [example.prompt for example in bench.requests(task.name, "calibration", ROUTED)] for task in TASKS
    }
    test = {task: [example.prompt for example in bench.requests(task)] for task in tasks}
    found = routed(Requests(train, test, ()))
    return {task: [choice == task for choice in choices] for task, choices in found.chosen.items()}


def rounded(bench: Bench, kind: str, options: argparse.Namespace, backbones: Backbones) -> Iterator[Rounded]:
    """What rounding does to the backbones themselves."""
    known = {"without": (False,), "with": (True,), "both": (False, True)}[options.prompts]
    cells = [
        (storage, prompts)
        for storage in options.storage or ()
        for prompts in known
        if storage != PLAIN and (storage == "int4" or prompts == known[0])
    ]
    for name in options.backbones if cells else ():
        reference = general_reference(backbones(name))
        if reference is None:
            return
        model = build_model(bench.base.path)
        for storage, prompts in cells:
            assign(model, backbones(name, storage, prompts))
            ratio, divergence = reference.perplexity_ratio(model), reference.divergence(model)
            yield Rounded(kind, name, storage, prompts, ratio, divergence)


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Averages over the tasks: accuracy, share of the fine-tunes', bytes and KL of each kind of expert and backbone."""
    names = ("kind", "backbone", "prompts", "form", "budget", "storage", "cut_against")
    keys = sorted({tuple(getattr(row, name) for name in names) for row in rows})
    lines = []
    for key in keys:
        chosen = [row for row in rows if tuple(getattr(row, name) for name in names) == key]
        reference = fmean(row.fine_tune for row in chosen)
        found = fmean(row.accuracy for row in chosen)
        lines.append(
            {
                **dict(zip(names, key, strict=True)),
                "bytes": round(fmean(row.bytes for row in chosen), 3),
                "accuracy": round(found, 4),
                "fine_tune": round(reference, 4),
                "share": round(found / reference, 4) if reference else None,
                **_averages("alone", [row.alone for row in chosen]),
                **_averages("routed", [row.routed for row in chosen]),
                **_divergences([row.kl for row in chosen if row.kl is not None]),
            }
        )
    return lines


def _averages(name: str, found: Sequence[float | None]) -> dict[str, float]:
    known = [value for value in found if value is not None]
    return {name: round(fmean(known), 4)} if known else {}


def _divergences(found: Sequence[Divergence]) -> dict[str, float]:
    """The mean of the tasks' means, and of their 99th percentiles."""
    if not found:
        return {}
    return {"kl": round(fmean(item.mean for item in found), 5), "kl_99": round(fmean(item.p99 for item in found), 5)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.experts_real", description="What experts keep of real fine-tunes.")
    parser.add_argument("--lora", type=Path, help="folder of LoRAs (default: the cache's)")
    parser.add_argument("--full", type=Path, help="folder of full fine-tunes (default: the cache's)")
    parser.add_argument("--kinds", nargs="+", choices=("lora", "full"), default=("lora", "full"))
    parser.add_argument("--tasks", nargs="+", help="some of the tasks (default: all that are there)")
    parser.add_argument("--backbones", nargs="+", choices=("base", "linear"), default=("base", "linear"))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="per cent of the backbone's bytes")
    parser.add_argument(
        "--prompts",
        choices=("without", "with", "both"),
        default="both",
        help="extract experts without or with prompts (default both)",
    )
    parser.add_argument("--calibration", type=positive, default=48, help="prompts that an expert is cut with")
    parser.add_argument("--distill", type=int, help="steps of distillation (default: the recipe's)")
    parser.add_argument(
        "--storage",
        nargs="+",
        choices=(PLAIN, *SCHEMES),
        help="storage of the backbones; also measures the KL to the fine-tunes",
    )
    parser.add_argument("--routed", action="store_true", help="also train a router, and count what it sends elsewhere")
    parser.add_argument("--requests", type=positive, default=60, help="held-out requests a task (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the requests and prompts (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        bench = Bench(base_dir(), options.requests, options.calibration, options.distill, options.seed)
    except BaseUnavailableError as error:
        parser.exit(1, f"error: {error}\n")
    folders = {"lora": options.lora or zoo_dir() / "lora", "full": options.full or zoo_dir() / "full"}
    pools = {kind: fine_tunes(bench.base, folders[kind], options.tasks) for kind in options.kinds}
    for kind, tunes in pools.items():
        if not tunes:
            print(f"no {kind} fine-tunes in {folders[kind]}", file=sys.stderr, flush=True)
    rows: list[Row] = []
    refused: list[Refused] = []
    general: list[Rounded] = []
    for kind, tunes in pools.items():
        with ExitStack() as stack:
            backbones = Backbones(stack, bench, tunes)
            for found in measure(bench, kind, tunes, options, backbones):
                if not options.quiet:
                    print(found, file=sys.stderr, flush=True)
                if isinstance(found, Row):
                    rows.append(found)
                else:
                    refused.append(found)
            general += rounded(bench, kind, options, backbones) if tunes else ()
    if options.json:
        document = {"summary": table(rows), "rounded": general, "rows": rows, "refused": refused}
        print(json.dumps(document, indent=2, default=asdict))
        return
    for line in [*table(rows), *(asdict(item) for item in general)]:
        print("  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    main()
