"""Deciding which expert answers a prompt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from merge.bundle import Bundle, BundleError, EncodedFeatures, RouterModel, load_router


@dataclass(frozen=True, eq=False)
class Decision:
    """Which expert, how sure.

    Attributes:
        expert: the chosen expert, or None: the backbone alone.
        confidence: probability of what was chosen, 0 to 1; for None, of there being no fitting expert.
        names: the experts that the router knows.
        chances: [E] float64, each one's probability.
    """

    expert: str | None
    confidence: float
    names: tuple[str, ...]
    chances: NDArray[np.float64]

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Each expert's probability."""
        return dict(zip(self.names, self.chances.tolist(), strict=True))


class Router:
    """A bundle's router. It does not change; safe to call from several threads.

    Attributes:
        model: its heads and their calibration.
        threshold: confidence below which the backbone answers alone.
    """

    def __init__(self, model: RouterModel, threshold: float | None = None) -> None:
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise ValueError(f"the router's threshold is a probability from 0 to 1, not {threshold}")
        self.model = model
        self.threshold = model.threshold if threshold is None else threshold

    @classmethod
    def from_bundle(cls, bundle: Bundle, threshold: float | None = None, adapters: Iterable[str] = ()) -> "Router":
        """Load the router of a bundle; `threshold` overrides the trained one, `adapters` are experts beside its own.

        Raises:
            BundleError: the bundle has no router, or it routes to an expert that the bundle does not hold.
        """
        if bundle.router_dir is None:
            raise BundleError(
                f"{bundle.path} has no router: merge it with calibration prompts, or name experts in requests"
            )
        model = load_router(bundle.router_dir)
        unknown = sorted(set(model.names) - {*bundle.expert_names, *adapters})
        if unknown:
            raise BundleError(f"the router {bundle.router_dir} names experts that are not there: {', '.join(unknown)}")
        return cls(model, threshold)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts it can choose."""
        return self.model.names

    @property
    def encodes(self) -> bool:
        """Whether it reads prompts by a neural encoder, which takes milliseconds."""
        return isinstance(self.model.featurizer, EncodedFeatures)

    def decide(self, prompt: str) -> Decision:
        """Choose the most probable expert, or none where its probability is under the threshold."""
        return self.decide_all([prompt])[0]

    def decide_all(self, prompts: Sequence[str]) -> list[Decision]:
        """Choose for several prompts, each for itself."""
        return [self.decision(chances) for chances in self.model.probabilities_of(prompts)]

    def decision(self, chances: NDArray[np.float64]) -> Decision:
        """The decision that these probabilities [E] make."""
        if len(chances):
            best = int(chances.argmax())
            if chances[best] >= self.threshold:
                return Decision(self.names[best], float(chances[best]), self.names, chances)
        return Decision(None, max(0.0, 1.0 - float(chances.sum())), self.names, chances)

    def of_model(self, model: RouterModel) -> "Router":
        """Other heads under this router's threshold."""
        return Router(model, self.threshold)

    def without(self, name: str) -> "Router":
        """This router without the head of an expert, where it has one."""
        kept = np.array([row for row, other in enumerate(self.names) if other != name], dtype=np.intp)
        if len(kept) == len(self.names):
            return self
        names, model = tuple(other for other in self.names if other != name), self.model
        return self.of_model(replace(model, names=names, weight=model.weight[kept], bias=model.bias[kept]))

    def with_head_of(self, source: RouterModel, name: str) -> "Router":
        """This router with the head that another one has for an expert, in the place of its own.

        Where the other one compares prompts with other landmarks, they come with the head.

        Semantics:  the head's logit z = (w · f + b - offset) / temperature stays what it was in `source`.

        Raises:
            ValueError: `source` has no such head, or reads text in another way.
        """
        if name not in source.names:
            raise ValueError(f"the router has no head for {name!r}; it has: {', '.join(source.names)}")
        mine = self.without(name).model
        row, scale = source.names.index(name), mine.temperature / source.temperature
        bias = (source.bias[row] - source.offset) * scale + mine.offset
        head = source.weight[row : row + 1] * np.float32(scale)
        mine, head = _joined(mine, source, head)
        return self.of_model(
            replace(
                mine,
                names=(*mine.names, name),
                weight=np.concatenate([mine.weight, head.astype(mine.weight.dtype)]),
                bias=np.append(mine.bias, np.float32(bias)),
            )
        )


def _joined(
    mine: RouterModel, source: RouterModel, head: NDArray[np.floating]
) -> tuple[RouterModel, NDArray[np.floating]]:
    """Both over the same features: those of `mine`, and the landmarks of `source` after them where they are others."""
    features, other = mine.featurizer, source.featurizer
    if features == other:
        return mine, head
    if not (
        isinstance(features, EncodedFeatures) and isinstance(other, EncodedFeatures) and features.reads_like(other)
    ):
        raise ValueError("the router reads text with another featurizer than this server's")
    counted, before, more = features.counted, len(features.landmarks), len(other.landmarks)
    landmarks = np.concatenate([features.landmarks, other.landmarks])
    head = np.concatenate([head[:, :counted], np.zeros((1, before), head.dtype), head[:, counted:]], axis=1)
    weight = np.concatenate([mine.weight, np.zeros((len(mine.names), more), mine.weight.dtype)], axis=1)
    return replace(mine, weight=weight, featurizer=replace(features, landmarks=landmarks)), head
