"""Deciding which expert answers a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

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
    """A bundle's router. Stateless once loaded; safe to call from several threads."""

    def __init__(self, model: RouterModel, threshold: float | None = None) -> None:
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise ValueError(f"the router's threshold is a probability from 0 to 1, not {threshold}")
        self._model = model
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
        return self._model.names

    def decide(self, prompt: str) -> Decision:
        """Choose the most probable expert, or none where its probability is under the threshold."""
        chances = self._model.probabilities(prompt)
        scores = {name: float(chance) for name, chance in zip(self._model.names, chances, strict=True)}
        best = max(scores, key=lambda name: scores[name])
        if scores[best] >= self.threshold:
            return Decision(best, scores[best], scores)
        return Decision(None, max(0.0, 1.0 - sum(scores.values())), scores)
