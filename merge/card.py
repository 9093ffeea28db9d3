"""The bundle's README.md: what was merged, how, and how to serve it."""

from collections.abc import Mapping, Sequence

from merge.recipe import Recipe
from merge.wording import counted

_TEXT = """\
---
library_name: overtone
tags:
- merge
- overtone
---
# {name}

{count} of `{base}`, served as one model: a backbone merged by `{method}`, and for each fine-tune an expert, a
small residual that is added to the backbone's weights while its requests run.

{table}

{notes}
Serve it with `overtone serve PATH`, the path of this directory. {requests} `backbone/` is an ordinary Hugging Face
directory that other engines load; `recipe.yml` is the recipe; `bundle.json` lists every file, and every input, with its
digest.
"""

_WITH_ROUTER = "The `model` of a request is an expert's name, or `auto`: then the router chooses."
_WITHOUT_ROUTER = "The `model` of a request is an expert's name, or `backbone` for the backbone alone."


def model_card(recipe: Recipe, rows: Sequence[Mapping[str, str]], notes: Sequence[str]) -> str:
    """Write the card.

    Args:
        recipe: the recipe.
        rows: the table's rows, one an expert; a cell that one lacks stays empty.
        notes: sentences to list below the table.
    """
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    return _TEXT.format(
        name=recipe.name,
        count=counted(len(recipe.models), "fine-tune"),
        base=recipe.base_model.name,
        method=recipe.merge_method,
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        requests=_WITHOUT_ROUTER if recipe.calibration is None else _WITH_ROUTER,
        notes="".join(f"- {note}\n" for note in notes),
    )
