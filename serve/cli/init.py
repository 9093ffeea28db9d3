"""`overtone init`: a first recipe from a base and its fine-tunes."""

from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    base: Annotated[
        Path, typer.Argument(help="The base: a Hugging Face directory or a GGUF file.", show_default=False)
    ],
    fine_tunes: Annotated[
        list[str],
        typer.Argument(
            help="Full checkpoints, GGUF files or PEFT LoRA directories, NAME=PATH, or a folder of them.",
            show_default=False,
        ),
    ],
    prompts: Annotated[
        Path | None,
        option(
            "--prompts", help='Prompts of the tasks, one JSON object on each line: {"task": "NAME", "prompt": "..."}.'
        ),
    ] = None,
) -> None:
    """Print a commented recipe for a base and its fine-tunes: `overtone init BASE LORAS... > recipe.yml`.

    Missing parts are listed in its comments and on stderr. Exits with 1 if there is an error.
    """
    from merge.draft import draft_recipe  # torch takes a second to import; --help should not

    draft = draft_recipe(base, fine_tunes, prompts)
    typer.echo(draft.text, nl=False)
    for line in draft.missing:
        typer.echo(f"missing: {line}", err=True)
    for finding in draft.findings:
        typer.echo(str(finding), err=True)
    if draft.errors:
        raise typer.Exit(1)
