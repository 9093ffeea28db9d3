"""Deciding which expert answers a prompt."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from merge.bundle import Bundle, BundleError, RouterModel, load_router


@dataclass(frozen=True)
class Decision:
    """Which expert, how sure.

    Attributes:
        expert: the chosen expert, or None: the backbone alone.
        confidence: probability of what was chosen, 0 to 1; for None, of there being no fitting expert.
        scores: each expert's probability.
    """

    expert: str | None
    confidence: float
    scores: Mapping[str, float]


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
    def from_bundle(cls, bundle: Bundle, threshold: float | None = None) -> "Router":
        """Load the router of a bundle; `threshold` overrides the trained one.

        Raises:
            BundleError: the bundle has no router, or it routes to an expert that the bundle does not hold.
        """
        if bundle.router_dir is None:
            raise BundleError(
                f"{bundle.path} has no router: merge it with calibration prompts, or name experts in requests"
            )
        model = load_router(bundle.router_dir)
        unknown = sorted(set(model.names) - set(bundle.expert_names))
        if unknown:
            raise BundleError(f"the router of {bundle.path} names experts that are not there: {', '.join(unknown)}")
        return cls(model, threshold)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts it can choose."""
        return self.model.names

    def decide(self, prompt: str) -> Decision:
        """Choose the most probable expert, or none where its probability is under the threshold."""
        chances = self.model.probabilities(prompt)
        scores = dict(zip(self.model.names, chances.tolist(), strict=True))
        best = self.model.names[int(chances.argmax())] if scores else None
        if best is not None and scores[best] >= self.threshold:
            return Decision(best, scores[best], scores)
        return Decision(None, max(0.0, 1.0 - sum(scores.values())), scores)

    def of_model(self, model: RouterModel) -> "Router":
        """Other heads under this router's threshold."""
        return Router(model, self.threshold)

    def without(self, name: str) -> "Router":
        """This router without the head of an expert, where it has one."""
        kept = np.array([row for row, other in enumerate(self.names) if other != name], dtype=np.intp)
        if len(kept) == len(self.names):
            return self
        names, model = tuple(other for other in self.names if other != name), self.model
        weight = np.take(model.weight.T, kept, axis=1).T  # keeps the order in memory
        return self.of_model(dataclasses.replace(model, names=names, weight=weight, bias=model.bias[kept]))

    def with_head_of(self, source: RouterModel, name: str) -> "Router":
        """This router with the head that another one has for an expert, in the place of its own.

        Semantics:  the head's logit z = (w · f + b - offset) / temperature stays what it was in `source`.

        Raises:
            ValueError: `source` has no such head, or reads text in another way.
        """
        if name not in source.names:
            raise ValueError(f"the router has no head for {name!r}; it has: {', '.join(source.names)}")
        mine = self.without(name).model
        if source.featurizer != mine.featurizer:
            raise ValueError("the router reads text with another featurizer than this server's")
        row, scale = source.names.index(name), mine.temperature / source.temperature
        bias = (source.bias[row] - source.offset) * scale + mine.offset
        head = source.weight.T[:, row : row + 1] * np.float32(scale)
        return self.of_model(
            dataclasses.replace(
                mine,
                names=(*mine.names, name),
                weight=np.concatenate([mine.weight.T, head], axis=1).T,
                bias=np.append(mine.bias, np.float32(bias)),
            )
        )
