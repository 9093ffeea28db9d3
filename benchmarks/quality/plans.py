"""What is measured in each domain, and in what sizes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from benchmarks.quality.domain import Domain
from benchmarks.quality.lm import LanguageDomain
from benchmarks.quality.rows import ROWS, Row
from benchmarks.quality.store import Store
from benchmarks.quality.table import Cut
from benchmarks.quality.text import TextDomain
from benchmarks.quality.vision import VisionDomain

DENSITIES = (0.005, 0.01, 0.02)
DATA_FREE = tuple(Cut("data-free", density) for density in DENSITIES)
CALIBRATED = tuple(Cut("calibrated", density) for density in DENSITIES)


SMALL = ("lm", "vision")
"""Domains whose models are so small that a second thread only waits."""


@dataclass(frozen=True)
class Plan:
    """What a domain's table holds.

    Attributes:
        seeds: of everything data-free.
        calibrated_seeds: of calibrated experts, which take longest.
        rows: the backbones.
        data_free: the paper's experts, beside every backbone.
        calibrated: calibrated experts, beside the backbones that `calibrated_rows` names.
        calibrated_rows: names of rows.
        extra: cuts of the named row alone.
        curves: whether Frank-Wolfe's scaling is measured.
    """

    seeds: int
    calibrated_seeds: int
    rows: tuple[Row, ...] = ROWS
    data_free: tuple[Cut, ...] = DATA_FREE
    calibrated: tuple[Cut, ...] = CALIBRATED
    calibrated_rows: tuple[str, ...] = ("pretrained", "task arithmetic", "FR official", "TSV-M")
    extra: tuple[tuple[str, Cut], ...] = ()
    curves: bool = True

    def cuts(self, row: Row) -> tuple[Cut, ...]:
        """The experts beside a backbone."""
        fitted = self.calibrated if row.name in self.calibrated_rows else ()
        return (*self.data_free, *fitted, *(cut for name, cut in self.extra if name == row.name))

    def cuts_in_order(self) -> tuple[Cut, ...]:
        """Every kind of expert once, those of 1 % first."""
        found = dict.fromkeys(cut for row in self.rows for cut in self.cuts(row))
        return tuple(sorted(found, key=lambda cut: (cut.density != 0.01, cut.kind != "data-free")))

    def seeds_of(self, cut: Cut) -> int:
        """The seeds of a kind of expert."""
        return self.seeds if cut.kind == "data-free" else min(self.seeds, self.calibrated_seeds)

    def shortened(self, quick: bool, seeds: int | None, no_curves: bool = False) -> Self:
        """For fewer seeds, without curves, or for a glance: two backbones, experts of 1 %, no curves."""
        if quick:
            names = ("pretrained", "task arithmetic")
            few = tuple(row for row in self.rows if row.name in names)
            one = replace(self, data_free=(Cut("data-free", 0.01),), calibrated=(Cut("calibrated", 0.01),))
            return replace(one, seeds=1, rows=few, calibrated_rows=names, extra=(), curves=False)
        return replace(self, seeds=seeds or self.seeds, curves=self.curves and not no_curves)


PLANS = {
    "lm": Plan(seeds=3, calibrated_seeds=1, calibrated_rows=tuple(row.name for row in ROWS)),
    "text": Plan(
        seeds=3,
        calibrated_seeds=1,
        calibrated=(Cut("calibrated", 0.01),),
        calibrated_rows=("task arithmetic", "TSV-M", "Iso-C"),
        extra=tuple(
            (row, cut)
            for row in ("TSV-M", "Iso-C")
            for cut in (Cut("data-free", 0.007), Cut("data-free", 0.007, "int8"), Cut("data-free", 0.01, "int8"))
        ),
        curves=False,
    ),
    "vision": Plan(seeds=3, calibrated_seeds=3),
}

FULL: dict[str, Callable[[Store], Domain]] = {"lm": LanguageDomain, "text": TextDomain, "vision": VisionDomain}
QUICK: dict[str, Callable[[Store], Domain]] = {
    "lm": lambda store: LanguageDomain(store, count=4, calibration=8),
    "text": TextDomain.quick,
    "vision": VisionDomain.quick,
}


def build_domain(name: str, store: Store, quick: bool) -> Domain:
    """A domain in its full or its quick sizes."""
    return (QUICK if quick else FULL)[name](store)
