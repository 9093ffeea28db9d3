"""Experts within a budget of bytes that all weights share: low-rank parts, entries, or both.

Each weight's change is decomposed, and the directions of all weights are bought by the error that they remove per byte.
Where entries remove more for their bytes, `auto` gives a weight entries in their place; `both` spends half of the
budget on entries of what the directions leave.

Over a backbone of few bits, what an expert shall add has the rounding errors in it. They are spread over all directions
and entries alike, so the few that an expert can hold would repair little of them, and would be lost to the task. So
without prompts directions and entries are those of what the fine-tune learned, and only their numbers are fitted to
what the stored backbone lacks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import ceil, prod
from typing import TypeVar

import torch
from torch import Tensor

from merge.bundle import LowRankDelta
from merge.checkpoint import Checkpoint
from merge.experts.budget import Curve, price, shared, spent
from merge.experts.entry_bytes import entry_bytes
from merge.experts.grams import Gram, power_of
from merge.experts.lora import own_factors
from merge.experts.low_rank import MOST_RANK, Directions, direction_bytes, directions, metric_of, stored
from merge.experts.magnitude import largest_entries
from merge.experts.placed import Product, Values
from merge.experts.sources import Sources
from merge.experts.spanned import spanned_change
from merge.experts.storage import as_stored
from merge.methods.vectors import EMBEDDINGS, Factors, row_blocks
from merge.parallel import fitting, in_order
from merge.task_vectors import is_unchanged

MEASURED = 2 << 30
"""Bytes of the layers' moments that are held at once."""

Result = TypeVar("Result")

MOST_ENTRIES = 0.25
"""Fraction of a row that may be entries; beyond that a weight is better stored whole."""


@dataclass(frozen=True)
class Parts:
    """What was chosen for the 2-D weights.

    Attributes:
        values: entries by weight.
        products: low-rank parts by weight, not rounded yet.
    """

    values: dict[str, Values]
    products: dict[str, Product]

    def rounded(self, sources: Sources) -> dict[str, LowRankDelta]:
        """The low-rank parts as a file holds them."""
        return {name: stored(item.b, item.a, sources.config.storage) for name, item in self.products.items()}


def choose_parts(
    fine_tune: Checkpoint,
    sources: Sources,
    room: int,
    grams: Callable[[], Iterable[Gram]] = tuple,
    advance: Callable[[], None] = lambda: None,
) -> Parts:
    """Choose what an expert holds of the 2-D weights, by the configuration's form and budget.

    Every weight is decomposed by one thread alone, so the outcome does not depend on their number.

    Args:
        fine_tune: θ_k.
        sources: base, stored backbone and settings.
        room: bytes that they may take.
        grams: measures what the layers read, one after the other; weights that are in none have all inputs count
            alike. With `form: both` it is called twice.
        advance: called after each weight.
    """
    form, storage = sources.config.form, sources.config.storage
    most = _most_rank(sources, room)
    powers: dict[str, Tensor] = {}

    def compute(gram: Gram) -> dict[str, tuple[Directions, Curve | None]]:
        metric = metric_of(gram.matrix) if gram.matrix.numel() else None
        found = {}
        for name in gram.weights:
            blind = metric is None or sources.merged is None
            change = _factors(fine_tune, sources, name) if blind else None
            dense = _decisive(fine_tune, sources, name, gram.power) if change is None else None
            curve = _entries(dense, gram.matrix, sources, room) if form == "auto" and dense is not None else None
            item = directions(change or _known(dense), most, metric)
            if _is_looked_up(name, sources):
                often = 1 / max(1, int(_known(dense).any(1).sum()) if dense is not None else item.b.shape[0])
                item = replace(item, gain=item.gain * often)
                curve = curve and replace(curve, gain=curve.gain * often)
            found[name] = item, curve
        return found

    chosen = _Pool(room)
    entries: dict[str, Curve] = {}
    for gram, found in _computed(grams, sources, compute, _most_bytes(fine_tune, sources)):
        powers |= dict.fromkeys(gram.weights, gram.power)
        for name, (item, curve) in found.items():
            chosen.add(name, item, direction_bytes(item.b.shape[0], item.a.shape[1], storage))
            if curve is not None:
                entries[name] = curve
            advance()
    if form == "both":
        return _with_entries_of_the_rest(fine_tune, sources, chosen, grams, powers, room)
    level = price(chosen.curves, shared(chosen.curves, room))
    better = {name for name, curve in entries.items() if curve.worth(level) > chosen.curves[name].worth(level)}
    curves = {name: entries[name] if name in better else curve for name, curve in chosen.curves.items()}
    pieces = shared(curves, room)
    products = {name: chosen.product(name, count) for name, count in pieces.items() if count and name not in better}
    values = {
        name: _kept(
            _decisive(fine_tune, sources, name, powers[name]),
            sources.lacking(fine_tune, name),
            pieces[name],
            powers[name],
            sources,
        )
        for name in sorted(better)
        if pieces[name]
    }
    return Parts(values, _fitted(products, fine_tune, sources, powers))


def _factors(fine_tune: Checkpoint, sources: Sources, name: str) -> Factors | None:
    """The change of a weight as factors, if LoRAs make it one of low rank; sparse entries are not considered for it."""
    own = own_factors(fine_tune, sources, name)
    return spanned_change(fine_tune, sources, name) if own is None else own


def _decisive(fine_tune: Checkpoint, sources: Sources, name: str, power: Tensor) -> Tensor:
    """The change of a weight that its directions and entries are chosen by.

    With prompts it is all that the stored backbone lacks: errors of rounding that matter for the output count too.
    """
    return sources.lacking(fine_tune, name) if power.numel() else sources.learned(fine_tune, name)


def _fitted(
    products: dict[str, Product], fine_tune: Checkpoint, sources: Sources, powers: Mapping[str, Tensor]
) -> dict[str, Product]:
    """The low-rank parts. If the backbone was rounded, their right factors are fitted to what the stored one lacks.

    Semantics: A = argmin_A ‖R − B A‖², R = θ_k − θ_m of the stored backbone
    """
    if sources.merged is None:
        return products
    return {
        name: item
        if powers[name].numel()
        else Product(item.b, torch.linalg.lstsq(item.b, sources.lacking(fine_tune, name)).solution)
        for name, item in products.items()
    }


def _computed(
    grams: Callable[[], Iterable[Gram]], sources: Sources, compute: Callable[[Gram], Result], each: int
) -> Iterator[tuple[Gram, Result]]:
    """A function of what layers read, and then of each weight of which that is not known, with an empty matrix.

    Some layers are measured, by all threads, and then their weights are decomposed, each by one; so many of them at a
    time that their `each` bytes fit.
    """
    threads = fitting(torch.get_num_threads(), each, sources.base.device)
    measured: set[str] = set()
    some: list[Gram] = []
    for gram in grams():
        measured |= set(gram.weights)
        some.append(gram)
        if sum(item.matrix.nbytes for item in some) >= MEASURED:
            yield from in_order(some, compute, threads)
            some = []
    some += [Gram((name,), torch.empty(0)) for name in sources.weights() if name not in measured]
    yield from in_order(some, compute, threads)


def _most_bytes(fine_tune: Checkpoint, sources: Sources) -> int:
    """Memory that one weight takes while it is decomposed: of the largest that may differ, three copies in float32."""
    sizes = {name: prod(sources.base.tensors[name].shape) for name in sources.weights()}
    return 12 * max(
        (size for name, size in sizes.items() if not is_unchanged(name, sources.base, fine_tune)), default=0
    )


def _is_looked_up(name: str, sources: Sources) -> bool:
    """Whether a weight is an embedding alone, and no output head: a token reads one of its rows, not all.

    So its error counts as the mean over the rows that changed, while that of a linear layer counts as their sum.
    """
    return fnmatchcase(name, EMBEDDINGS[0]) and "lm_head.weight" in sources.base.tensors


def _known(change: Tensor | None) -> Tensor:
    assert change is not None
    return change


class _Pool:
    """The directions of all weights so far, without those that the budget cannot reach any more."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._found: dict[str, Directions] = {}
        self.curves: dict[str, Curve] = {}

    def add(self, name: str, found: Directions, cost: int) -> None:
        """Take in the directions of one weight."""
        self._found[name], self.curves[name] = found, Curve(found.gain, cost)
        # More weights only raise the price of a byte. One more small piece may fit although a larger one does not.
        reach = shared(self.curves, self._room + max(curve.cost for curve in self.curves.values()))
        for other, count in reach.items():
            if count < len(self.curves[other].gain):
                self._found[other] = self._found[other].leading(count)
                self.curves[other] = Curve(self._found[other].gain, self.curves[other].cost)

    def product(self, name: str, count: int) -> Product:
        """The best `count` directions of a weight."""
        found = self._found[name].leading(count)
        return Product(found.b, found.a)


def _most_rank(sources: Sources, room: int) -> int:
    """Directions to compute of each weight: a multiple of the number that each gets if all get the same."""
    shapes = [sources.base.tensors[name].shape for name in sources.weights()]
    each = sum(direction_bytes(shape[0], shape[1], sources.config.storage) for shape in shapes)
    return min(MOST_RANK, 16 + ceil(8 * room / max(1, each)))


def _entries(change: Tensor, gram: Tensor, sources: Sources, room: int) -> Curve:
    """What ever more entries of each row remove of the error.

    Entries are chosen by the power of their inputs alone. What they remove then is measured for as many as the weight
    would get of the budget, and the whole curve is put right by that: inputs that go together make entries worth less.
    """
    rows, columns = change.shape
    if not bool(change.any()):
        return Curve(torch.zeros(0, dtype=torch.float64), rows)
    most = max(1, min(columns, int(MOST_ENTRIES * columns), room // rows))
    power = power_of(gram)
    gain = torch.zeros(most, dtype=torch.float64, device=change.device)
    for block in row_blocks(change.shape):
        score = _score(change if block is None else change[block], power)
        gain += score.topk(most, 1).values.double().square().sum(0)
    if gram.numel():
        k = max(1, min(most, round((sources.config.budget or 0.0) * columns)))
        index = _score(change, power).topk(k, 1).indices
        left = change.scatter(1, index, 0.0)
        removed = float(((change @ gram) * change).sum() - ((left @ gram) * left).sum())
        gain *= max(0.0, removed) / max(float(gain[:k].sum()), 1e-300)
    size = entry_bytes(max(1 / columns, 0.005), sources.config.storage)
    return Curve(gain.cpu(), ceil(rows * size), 2 * rows if sources.config.storage == "int8" else 0)


def _score(change: Tensor, power: Tensor) -> Tensor:
    """What entries are ranked by, `power` [K] the mean square of each input; empty: all inputs count alike."""
    return change.abs() * power.sqrt() if power.numel() else change.abs()


def _kept(change: Tensor, lacking: Tensor, k: int, power: Tensor, sources: Sources) -> Values:
    index = largest_entries(_score(change, power), k)
    return Values(index, as_stored(lacking.gather(1, index), sources.config.storage))


def _with_entries_of_the_rest(
    fine_tune: Checkpoint,
    sources: Sources,
    chosen: _Pool,
    grams: Callable[[], Iterable[Gram]],
    powers: Mapping[str, Tensor],
    room: int,
) -> Parts:
    pieces = shared(chosen.curves, room // 2)
    found = {name: chosen.product(name, count) for name, count in pieces.items() if count}
    products = _fitted(found, fine_tune, sources, powers)

    def left(change: Tensor, part: Product | None) -> Tensor:
        return change if part is None else change - stored(part.b, part.a, sources.config.storage).dense(torch.float32)

    def decisive(name: str) -> Tensor:
        return left(_decisive(fine_tune, sources, name, powers[name]), found.get(name))

    def lacking(name: str) -> Tensor:
        return left(sources.lacking(fine_tune, name), products.get(name))

    def computed(gram: Gram) -> dict[str, Curve]:
        return {name: _entries(decisive(name), gram.matrix, sources, room) for name in gram.weights}

    curves: dict[str, Curve] = {}
    for _, some in _computed(grams, sources, computed, _most_bytes(fine_tune, sources)):
        curves |= some
    counts = shared(curves, room - spent(chosen.curves, pieces))
    values = {
        name: _kept(decisive(name), lacking(name), count, powers[name], sources)
        for name, count in counts.items()
        if count
    }
    return Parts(values, products)
