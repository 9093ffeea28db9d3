"""Merge methods: functions from a base tensor and a stream of task vectors to the merged tensor, one file each.

`@method("name")` on such a function registers it; the function's keyword-only parameters are the schema that a recipe's
`parameters:` are checked against, for the whole recipe and, if annotated `PerTask`, for each model.
"""

from merge.methods import (
    base,
    breadcrumbs,
    dare,
    della,
    fr,
    iso_c,
    karcher,
    knots,
    linear,
    nuslerp,
    sce,
    task_arithmetic,
    ties,
    tsv_m,
)
from merge.methods.registry import AUTO, METHODS, BoundMethod, Method, ParameterError, find_method, method
from merge.methods.vectors import PerTask, TaskVectors

__all__ = [
    "AUTO",
    "METHODS",
    "BoundMethod",
    "Method",
    "ParameterError",
    "PerTask",
    "TaskVectors",
    "base",
    "breadcrumbs",
    "dare",
    "della",
    "find_method",
    "fr",
    "iso_c",
    "karcher",
    "knots",
    "linear",
    "method",
    "nuslerp",
    "sce",
    "task_arithmetic",
    "ties",
    "tsv_m",
]
