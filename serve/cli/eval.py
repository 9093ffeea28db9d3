"""`overtone eval`: how well a bundle of the zoo answers, without HTTP."""

import json
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle of the embedded models.", show_default=False)],
    prompts: Annotated[int, option("--prompts", help="Unseen prompts a task.", min=1)] = 50,
    seed: Annotated[int, option("--seed", help="Seeds the prompts.")] = 0,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure exact match of the fine-tunes, the backbone, the named experts and the routed model."""
    from benchmarks.evaluation import evaluate, unseen_prompts  # torch takes a second to import; --help should not
    from benchmarks.evaluation.engine import engine_asker
    from benchmarks.zoo import fine_tune_dirs
    from benchmarks.zoo.matching import MAX_NEW_TOKENS
    from merge.bundle import open_bundle

    opened = open_bundle(bundle)
    examples = unseen_prompts(prompts, seed)
    if not set(examples) & set(opened.expert_names):
        raise ValueError(
            f"{bundle} was not merged from the embedded models, whose tasks are {', '.join(sorted(examples))}; "
            "`overtone eval` has prompts for these tasks alone"
        )
    with engine_asker(opened, MAX_NEW_TOKENS) as ask:
        result = evaluate(ask, opened, examples, fine_tune_dirs(examples))
    typer.echo(json.dumps(result.as_json(), indent=2) if as_json else result.as_text())
