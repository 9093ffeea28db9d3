"""`overtone route`: which expert would answer."""

import json
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory.", show_default=False)],
    text: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.", show_default=False)],
    router_threshold: Annotated[
        float | None, option("--router-threshold", help="Confidence below which the backbone answers alone.")
    ] = None,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show which expert a prompt would go to, without generating."""
    from merge.bundle import open_bundle  # torch takes a second to import; --help should not
    from serve.router import Router

    prompt = typer.get_text_stream("stdin").read() if text == "-" else text
    decision = Router.from_bundle(open_bundle(bundle), router_threshold).decide(prompt)
    scores = dict(sorted(decision.scores.items(), key=lambda score: (-score[1], score[0])))
    if as_json:
        typer.echo(json.dumps({"expert": decision.expert, "confidence": decision.confidence, "scores": scores}))
        return
    typer.echo(f"{decision.expert or 'backbone'}  {decision.confidence:.3f}")
    for name, score in scores.items():
        typer.echo(f"  {score:.3f}  {name}")
