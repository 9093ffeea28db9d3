"""`overtone router train`: a router without a merge."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import option


class Feature(StrEnum):
    """What a router's heads can read."""

    NGRAM = "ngram"
    ENCODER = "encoder"
    BACKBONE = "backbone"


def train(
    prompts: Annotated[
        Path,
        typer.Argument(help='JSON lines: {"task": EXPERT, "prompt": TEXT}, or with "messages".', show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="The directory to write.", show_default=False)],
    features: Annotated[
        list[Feature] | None,
        option("--features", help="Features that the router reads; repeatable. Default: as the recipe's `auto`."),
    ] = None,
    encoder: Annotated[Path | None, option("--encoder", help="A Hugging Face sentence encoder's directory.")] = None,
    backbone: Annotated[
        Path | None, option("--backbone", help="The model's directory, for the features backbone.")
    ] = None,
    foreign: Annotated[Path | None, option("--foreign", help="A file of prompts that belong to no expert.")] = None,
    max_foreign_routed: Annotated[
        float | None, option("--max-foreign-routed", help="Share of the foreign prompts that may reach an expert.")
    ] = None,
    max_unrouted: Annotated[
        float | None,
        option("--max-unrouted", help="Share of the experts' own prompts that may be left to the backbone (0.05)."),
    ] = None,
    threshold: Annotated[
        float | None,
        option("--threshold", help="Confidence below which the backbone answers alone; fitted if not given."),
    ] = None,
) -> None:
    """Train a router on prompts of each expert, for `overtone serve --router OUT`."""
    from pydantic import ValidationError

    from merge.bundle import save_router  # torch takes a second to import; --help should not
    from merge.bundle.files import new_directory
    from merge.experts.examples import Example, read_lines, texts
    from merge.router import RouterConfig, read_foreign, train_router

    try:
        config = RouterConfig(
            features=tuple(feature.value for feature in features) if features else "auto",
            encoder=encoder,
            foreign=foreign,
            max_foreign_routed=max_foreign_routed,
            max_unrouted=max_unrouted,
            threshold=threshold,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = f"--{first['loc'][0]}".replace("_", "-") if first["loc"] else None
        raise typer.BadParameter(first["msg"].removeprefix("Value error, "), param_hint=field) from error
    if "backbone" in config.chosen_features and backbone is None:
        raise typer.BadParameter("the feature backbone needs the model's directory", param_hint="--backbone")
    examples: dict[str, list[Example]] = {}
    for _, task, example in read_lines(prompts):
        examples.setdefault(task, []).append(example)
    if not examples:
        raise ValueError(f"{prompts} holds no prompt")
    by_task = {task: texts(found) for task, found in examples.items()}
    others = [] if foreign is None else read_foreign(foreign)
    with new_directory(out) as directory:
        model = train_router(by_task, config, others, backbone)
        save_router(directory, model)
    typer.echo(f"{out}: a router for {', '.join(model.names)}; threshold {model.threshold:g}")
