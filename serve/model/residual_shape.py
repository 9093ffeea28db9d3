"""What a set of experts needs of the slots that are made for them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from merge.bundle import BundleError, ExpertLayout, read_layout


@dataclass(frozen=True)
class ResidualShape:
    """What a set of experts needs.

    Attributes:
        entries: the most entries a row of each 2-D weight's sparse part.
        dense: the 1-D parameters that they change.
        quantised: the 2-D weights of which every expert's sparse part has 8-bit values.
        ranks: the largest rank of each 2-D weight's low-rank part.
        quantised_ranks: the 2-D weights of which every expert's low-rank part has 8-bit factors.
        adapter_ranks: the largest rank that a LoRA adapter may have on each 2-D weight. It may be more than the weight
            has rows or columns, which an expert's own rank may not.
    """

    entries: Mapping[str, int]
    dense: frozenset[str]
    quantised: frozenset[str] = frozenset()
    ranks: Mapping[str, int] = field(default_factory=dict)
    quantised_ranks: frozenset[str] = frozenset()
    adapter_ranks: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, experts: Sequence[Path]) -> "ResidualShape":
        """Read the headers of expert files. A file that cannot be read asks for nothing: loading it will say why."""
        layouts = []
        for path in experts:
            with suppress(BundleError):
                layouts.append(read_layout(path))
        return cls.of_layouts(layouts)

    @classmethod
    def of_layouts(cls, layouts: Iterable[ExpertLayout]) -> "ResidualShape":
        """What experts need, by the headers of their files."""
        entries: dict[str, int] = {}
        dense: set[str] = set()
        ranks: dict[str, int] = {}
        wide: set[str] = set()
        wide_ranks: set[str] = set()
        for layout in layouts:
            for name, count in layout.entries.items():
                entries[name] = max(entries.get(name, 0), count)
            for name, rank in layout.ranks.items():
                ranks[name] = max(ranks.get(name, 0), rank)
            dense |= layout.dense
            wide |= layout.entries.keys() - layout.quantised
            wide_ranks |= layout.ranks.keys() - layout.quantised_ranks
        quantised, quantised_ranks = entries.keys() - wide, ranks.keys() - wide_ranks
        return cls(entries, frozenset(dense), frozenset(quantised), ranks, frozenset(quantised_ranks))
