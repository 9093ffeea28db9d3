"""`overtone route`: which expert would answer, and how often that is right."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.cli.options import option

if TYPE_CHECKING:
    from merge.router import RoutingQuality
    from serve.router import Router

BATCH = 256


def command(
    bundle: Annotated[
        Path,
        typer.Argument(
            help="A bundle's directory, or that of a router which `overtone router train` wrote.", show_default=False
        ),
    ],
    text: Annotated[
        str | None, typer.Argument(help="The prompt; - reads it from standard input.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        option(
            "--data",
            help="Measure the router on labelled prompts instead: JSON lines with text or prompt, and task, expert or "
            "label, null for no expert.",
            show_default=False,
        ),
    ] = None,
    router_threshold: Annotated[
        float | None,
        option(
            "--router-threshold",
            help="Confidence below which the backbone answers alone; the router's own if not given.",
        ),
    ] = None,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show which expert a prompt would go to, without generating; or how good the router is on labelled prompts."""
    if (text is None) == (data is None):
        raise typer.BadParameter("give a prompt, or a file of labelled prompts with --data")
    router = _opened(bundle, router_threshold)
    if data is not None:
        quality = _judged(router, data)
        typer.echo(json.dumps(asdict(quality), indent=1) if as_json else _report(quality))
        return
    assert text is not None
    decision = router.decide(typer.get_text_stream("stdin").read() if text == "-" else text)
    scores = dict(sorted(decision.scores.items(), key=lambda score: (-score[1], score[0])))
    if as_json:
        typer.echo(json.dumps({"expert": decision.expert, "confidence": decision.confidence, "scores": scores}))
        return
    typer.echo(f"{decision.expert or 'backbone'}  {decision.confidence:.3f}")
    for name, score in scores.items():
        typer.echo(f"  {score:.3f}  {name}")


def _opened(directory: Path, threshold: float | None) -> "Router":
    from merge.bundle import load_router, open_bundle  # torch takes a second to import; --help should not
    from serve.router import Router

    if (directory / "router.json").is_file():
        return Router(load_router(directory), threshold)
    return Router.from_bundle(open_bundle(directory), threshold)


def _judged(router: "Router", data: Path) -> "RoutingQuality":
    import numpy as np

    from merge.router import read_labelled, routing_quality

    rows = read_labelled(data)
    texts = [text for text, _ in rows]
    chances = [router.model.probabilities_of(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return routing_quality(router.names, np.concatenate(chances), [label for _, label in rows], router.threshold)


def _report(quality: "RoutingQuality") -> str:
    lines = [
        f"prompts of experts    {quality.prompts:>6}",
        f"  accuracy            {quality.accuracy:6.3f}  (most probable expert, whatever the threshold)",
        f"  routed correctly    {quality.routed:6.3f}",
        f"  coverage            {quality.coverage:6.3f}",
        f"  calibration error   {quality.ece:6.3f}",
        f"prompts of none       {quality.foreign:>6}",
    ]
    if quality.auroc is not None and quality.foreign_routed is not None:
        lines += [f"  routed to an expert {quality.foreign_routed:6.3f}", f"  AUROC               {quality.auroc:6.3f}"]
    lines += ["", "threshold  coverage  accuracy"]
    for point in quality.curve[::2]:
        accuracy = "       -" if point.accuracy is None else f"{point.accuracy:8.3f}"
        lines.append(f"{point.threshold:9.2f}  {point.coverage:8.3f}  {accuracy}")
    width = max(map(len, (*quality.tasks, *quality.choices)))
    lines += ["", "prompts by their own expert (rows) and the router's choice (columns)"]
    lines.append(" " * width + "".join(f"  {choice:>{max(5, len(choice))}}" for choice in quality.choices))
    for task, row in zip(quality.tasks, quality.confusion, strict=True):
        cells = (f"  {count:>{max(5, len(choice))}}" for choice, count in zip(quality.choices, row, strict=True))
        lines.append(f"{task:<{width}}" + "".join(cells))
    return "\n".join(lines)
