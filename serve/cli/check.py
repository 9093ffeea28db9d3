"""`overtone check`: what is wrong with a recipe, before anything is merged."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    out: Annotated[
        Path | None, option("--out", help="Directory of the future bundle: also check it and its free space.")
    ] = None,
    overwrite: Annotated[bool, option("--overwrite", help="Accept that --out exists.")] = False,
    quick: Annotated[bool, option("--quick", help="Read headers, configs and tokenizers, but no weights.")] = False,
    progress: Annotated[bool, option("--progress/--no-progress", help="Show the progress.")] = True,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Report all errors of a recipe and its inputs. Exits with 1 if there is an error."""
    from merge.check import check_recipe  # torch takes a second to import; --help should not
    from merge.wording import counted

    report = check_recipe(recipe, out, overwrite, quick, progress)
    warned = len(report.findings) - report.errors
    if as_json:
        document = {
            "recipe": str(report.recipe),
            "errors": report.errors,
            "warnings": warned,
            "findings": [asdict(finding) for finding in report.findings],
            "models": {name: asdict(lineage) for name, lineage in report.lineages.items()},
            "cost": None if report.cost is None else asdict(report.cost),
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        for finding in report.findings:
            typer.echo(str(finding))
        for name, lineage in report.lineages.items():
            typer.echo(f"models.{name}: {lineage.summary()}")
        if report.cost is not None:
            typer.echo(f"merging takes {report.cost.summary()}")
        typer.echo(f"{recipe}: {counted(report.errors, 'error')}, {counted(warned, 'warning')}")
    if report.errors:
        raise typer.Exit(1)
