"""`overtone merge`: a recipe in, a bundle out."""

from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The bundle's directory, to be written.", show_default=False)],
    overwrite: Annotated[bool, option("--overwrite", help="Replace a bundle that is there.")] = False,
    progress: Annotated[bool, option("--progress/--no-progress", help="Show how far it is.")] = True,
) -> None:
    """Merge the fine-tunes of a recipe into a bundle: backbone, experts and router."""
    from merge.run import merge_recipe  # torch takes a second to import; --help should not

    typer.echo(merge_recipe(recipe, out, overwrite=overwrite, progress=progress))
