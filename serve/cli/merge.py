"""`overtone merge`: a recipe in, a bundle out."""

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The directory of the bundle to write.", show_default=False)],
    overwrite: Annotated[bool, option("--overwrite", help="Replace an existing bundle.")] = False,
    resume: Annotated[bool, option("--resume", help="Continue an interrupted merge of this recipe.")] = False,
    progress: Annotated[bool, option("--progress/--no-progress", help="Show the progress.")] = True,
    workers: Annotated[
        int | None,
        option(
            "--workers", help="Tensors and experts processed at a time; as many as fit into memory if not given.", min=1
        ),
    ] = None,
    ray: Annotated[
        bool,
        option("--ray", help="Process tensors and experts as Ray tasks, on RAY_ADDRESS or this machine (extra ray)."),
    ] = False,
    device: Annotated[
        str,
        option("--device", help="Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N."),
    ] = "auto",
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Merge the fine-tunes of a recipe into a bundle: backbone, experts and router."""
    from merge.check import CheckError  # torch takes a second to import; --help should not
    from merge.run import merge_recipe
    from merge.wording import counted

    signal.signal(signal.SIGTERM, _stop)
    try:
        report = merge_recipe(
            recipe, out, overwrite=overwrite, progress=progress, workers=workers, resume=resume, ray=ray, device=device
        )
    except CheckError as error:
        for finding in error.findings:
            typer.echo(str(finding), err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(asdict(report), default=str))
        return
    router = "a router" if report.router else "no router"
    experts = counted(len(report.experts), "expert")
    quantised = report.stored_bytes < report.backbone_bytes
    full, whole = (f" ({report.backbone_bytes:,} unquantised)", "'s, unquantised") if quantised else ("", "'s")
    typer.echo(
        f"{report.bundle}: backbone {report.stored_bytes:,} bytes{full}, {experts}, {router}, in {report.seconds:.1f} s"
    )
    for expert in report.experts:
        typer.echo(f"  {expert.name}: {expert.bytes:,} bytes ({expert.share:.1%} of the backbone{whole})")
    for note in report.notes:
        typer.echo(f"  note: {note}")


def _stop(*_: object) -> None:
    """Treat SIGTERM as Ctrl-C: workers end with the merge, and finished parts are kept."""
    raise KeyboardInterrupt
