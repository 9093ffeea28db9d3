"""What experts keep of a real model's fine-tunes, by form and bytes: `python -m benchmarks.experts_real --json`.

LoRA and full fine-tunes of the real zoo; a backbone that is the base and one that is their average; experts that are
cut without prompts and with some. Each cell is the exact match on held-out requests with the task's own expert, and
its share of the fine-tune's. Full fine-tunes are looked for under `--full`; `python -m benchmarks.zoo.real.train
--full` makes them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers.utils import logging

from benchmarks.zoo.command import Parser, positive
from benchmarks.zoo.real.bench import Bench, fine_tunes
from merge.backbone import write_backbone
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.methods import find_method
from merge.progress import Progress
from serve.demo.zoo.real.base import base_dir, zoo_dir
from serve.demo.zoo.real.packages import BaseUnavailableError

FORMS = ("auto", "low_rank", "both", "sparse")
BUDGETS = (0.25, 0.5, 1.0, 2.0)


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
        alone: of the backbone.
        divergence: mean KL to the fine-tune on the calibration prompts, nats a token; None without prompts.
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
    alone: float
    divergence: float | None

    def __str__(self) -> str:
        how = f"{self.form} {self.budget:g} % {'with' if self.prompts else 'without'} prompts"
        return f"{self.kind}, {self.backbone}, {self.task}, {how}: {self.accuracy:.3f} of {self.fine_tune:.3f}"


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
    bench: Bench, kind: str, tunes: Mapping[str, Checkpoint], options: argparse.Namespace
) -> Iterator[Row | Refused]:
    """All experts of one kind of fine-tunes."""
    plans = [
        (form, budget, prompts)
        for form in options.forms
        for budget in options.budgets
        for prompts in ((False, True) if options.prompts == "both" else (options.prompts == "with",))
    ]
    with ExitStack() as stack:
        backbones = {"base": bench.base}
        if "linear" in options.backbones:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            method = find_method("linear")
            write_backbone(directory, bench.base, tunes, method.bind(method.parameters(), {}))
            backbones["linear"] = open_checkpoint(directory)
        shown = stack.enter_context(
            Progress(not options.quiet).stage(f"{kind} experts", len(options.backbones) * len(tunes) * len(plans))
        )
        for task, fine_tune in tunes.items():
            reference = bench.score(fine_tune, task)
            for name in options.backbones:
                alone = bench.score(backbones[name], task)
                for form, budget, prompts in plans:
                    settings = {"form": form, "budget": budget / 100}
                    asked = (kind, name, task, form, budget, prompts)
                    shown()
                    try:
                        expert, size, divergence = bench.cut(task, fine_tune, backbones[name], settings, prompts)
                    except ValueError as error:
                        yield Refused(*asked, str(error))
                        continue
                    right = bench.score(backbones[name], task, expert)
                    yield Row(*asked, 100 * size, right, reference, alone, divergence)


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Averages over the tasks: accuracy, share of the fine-tunes' and bytes of each kind, backbone, form and budget."""
    keys = sorted({(row.kind, row.backbone, row.prompts, row.form, row.budget) for row in rows})
    lines = []
    for key in keys:
        chosen = [row for row in rows if (row.kind, row.backbone, row.prompts, row.form, row.budget) == key]
        reference = fmean(row.fine_tune for row in chosen)
        found = fmean(row.accuracy for row in chosen)
        lines.append(
            {
                **dict(zip(("kind", "backbone", "prompts", "form", "budget"), key, strict=True)),
                "bytes": round(fmean(row.bytes for row in chosen), 3),
                "accuracy": round(found, 4),
                "fine_tune": round(reference, 4),
                "share": round(found / reference, 4) if reference else None,
                "alone": round(fmean(row.alone for row in chosen), 4),
            }
        )
    return lines


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
    parser.add_argument("--prompts", choices=("without", "with", "both"), default="both", help="to cut experts with")
    parser.add_argument("--calibration", type=positive, default=48, help="prompts that an expert is cut with")
    parser.add_argument("--distill", type=int, help="steps of distillation (default: the recipe's)")
    parser.add_argument("--requests", type=positive, default=60, help="held-out requests a task (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests and prompts (default 1)")
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
    for kind, tunes in pools.items():
        for found in measure(bench, kind, tunes, options):
            if not options.quiet:
                print(found, file=sys.stderr, flush=True)
            if isinstance(found, Row):
                rows.append(found)
            else:
                refused.append(found)
    if options.json:
        document = {"summary": table(rows), "rows": rows, "refused": refused}
        print(json.dumps(document, indent=2, default=asdict))
        return
    for line in table(rows):
        print("  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    main()
