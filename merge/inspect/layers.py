"""Where a parameter stands in a model, and the ranks of low-rank parts by layer."""

import re
from collections.abc import Mapping, Sequence

MOST_COLUMNS = 8
"""Experts that a table of text has room for."""

_NUMBERED = re.compile(r"^(.*?\.)(\d+)\.(.+)$")

Ranks = tuple[int, int]
"""The least and the largest rank of some weights."""


def layer_and_kind(name: str) -> tuple[int | None, str]:
    """Split a parameter's name: ("model.layers.3.mlp.up_proj.weight") gives (3, "mlp.up_proj")."""
    found = _NUMBERED.match(name)
    layer, kind = (int(found[2]), found[3]) if found else (None, name)
    return layer, kind.removesuffix(".weight")


def ranks_by_layer(ranks: Mapping[str, int]) -> dict[str, Ranks]:
    """The ranks in each layer, by its number; outside of the layers of each weight, by its name.

    Args:
        ranks: of each weight, by its Hugging Face name.
    """
    found: dict[str, list[int]] = {}
    for name, rank in ranks.items():
        layer, kind = layer_and_kind(name)
        found.setdefault(kind if layer is None else str(layer), []).append(rank)
    return {place: (min(several), max(several)) for place, several in found.items()}


def rank_lines(experts: Mapping[str, Mapping[str, int]]) -> Sequence[str]:
    """A table of ranks, one line a layer, for experts whose ranks differ from weight to weight.

    Args:
        experts: the rank of each weight of each expert; of more than 8 experts with different ranks none is shown.
    """
    shown = {name: ranks for name, ranks in experts.items() if len(set(ranks.values())) > 1}
    if not shown or len(shown) > MOST_COLUMNS:
        return []
    tables = {name: ranks_by_layer(ranks) for name, ranks in shown.items()}
    places = sorted({place for table in tables.values() for place in table}, key=_order)
    widths = {name: max(len(name), 7) for name in shown}
    first = max(len("rank in layer"), *map(len, places))
    lines = ["  ".join([f"{'rank in layer':<{first}}", *(f"{name:>{widths[name]}}" for name in shown)])]
    for place in places:
        cells = [f"{said(tables[name].get(place)):>{widths[name]}}" for name in shown]
        lines.append("  ".join([f"{place:<{first}}", *cells]))
    return lines


def said(ranks: Ranks | None) -> str:
    """Ranks in a table's cell."""
    return "-" if ranks is None else f"{ranks[0]}" if ranks[0] == ranks[1] else f"{ranks[0]}-{ranks[1]}"


def _order(place: str) -> tuple[bool, int, str]:
    return not place.isdigit(), int(place) if place.isdigit() else 0, place
