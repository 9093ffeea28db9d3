"""`overtone inspect`: what is in a bundle."""

import json
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory.", show_default=False)],
    html: Annotated[
        Path | None, option("--html", help="Also write a report with pictures to this file.", show_default=False)
    ] = None,
    progress: Annotated[bool, option("--progress/--no-progress", help="Show the progress.")] = True,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the experts of a bundle: sizes, how they were extracted, and how similar they are. --html writes a page."""
    from merge.bundle import open_bundle  # torch takes a second to import; --help should not
    from merge.bundle.files import replaced
    from merge.inspect import html_page, inspect_bundle, take_pictures
    from merge.progress import Progress

    opened = open_bundle(bundle)
    found = inspect_bundle(opened)
    document = found.as_json()
    if html is not None:
        pictures = take_pictures(opened, Progress(progress))
        document["pictures"] = pictures.as_json()
        with replaced(html.absolute()) as partial:
            partial.write_text(html_page(found, pictures), encoding="utf-8")
    typer.echo(json.dumps(document, indent=2) if as_json else found.as_text())
    if html is not None and not as_json:
        typer.echo(f"report: {html}")
