"""The rows of the table: merge methods, each with the hyper-parameters that are tried on validation data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from merge.frank_wolfe import FrankWolfeConfig, SoftConfig


@dataclass(frozen=True)
class Row:
    """One backbone.

    Attributes:
        name: in the table.
        method: a key of `METHODS`, or `frank_wolfe`, or None for the base itself.
        parameters: the method's.
        scales: λ's that are tried: the backbone is θ₀ + λ (merged − θ₀), `merged` with the method's λ at 1.
        spatial: whether the method takes patterns of the matrices to leave aside.
    """

    name: str
    method: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] = (1.0,)
    spatial: bool = False


SUMS = (0.1, 0.2, 0.3, 0.5)
"""λ of sums of task vectors."""

FILTERED = (0.2, 0.3, 0.5, 0.8)
"""λ of methods that make the vectors smaller first."""

ROWS = (
    Row("pretrained", None),
    Row("linear", "linear"),
    Row("task arithmetic", "task_arithmetic", {"weight": 1.0}, SUMS),
    Row("TSV-M", "tsv_m", {}, (0.4, 0.7, 1.0, 1.4), spatial=True),
    Row("FR official", "fr", {"filter": "official", "r": 0.7, "lambda": 1.0}, FILTERED, spatial=True),
    Row("shrink control", "fr", {"r": 0.7, "control": "shrink", "lambda": 1.0}, FILTERED, spatial=True),
    Row("Iso-C", "iso_c", {}, (0.6, 1.0, 1.5, 2.0), spatial=True),
    Row("FR normalized", "fr", {"filter": "normalized", "d0": 0.1, "lambda": 1.0}, FILTERED, spatial=True),
    Row("TIES", "ties", {"density": 0.2}, (0.5, 1.0, 1.5)),
    Row("DARE", "dare_linear", {"weight": 1.0, "density": 0.5}, SUMS),
    Row("Frank-Wolfe hard", "frank_wolfe", {"variant": "hard"}),
    Row("Frank-Wolfe soft", "frank_wolfe", {"variant": "soft"}),
)


def frank_wolfe_config(variant: str, aside: tuple[str, ...], frozen: bool, steps: int = 6) -> FrankWolfeConfig:
    """What the table's and the curves' Frank-Wolfe runs share.

    Args:
        variant: `hard` or `soft`.
        aside: patterns of the embeddings.
        frozen: whether the fine-tunes share them, so that they need not move.
        steps: most steps.
    """
    return FrankWolfeConfig(
        variant="hard" if variant == "hard" else "soft",
        steps=steps,
        soft=SoftConfig(steps=4) if variant == "soft" else None,
        exclude=aside if frozen else (),
    )
