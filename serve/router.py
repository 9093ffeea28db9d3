"""Deciding which expert answers a prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from merge.bundle import Bundle, BundleError, EncodedFeatures, RouterModel, load_router
from serve.decision import Decision, mixed
from serve.sessions import TURNS, followed
from serve.together import Together


class Router:
    """A bundle's router. It does not change; safe to call from several threads.

    Attributes:
        model: its heads and their calibration.
        threshold: confidence below which the backbone answers alone.
        sessions: whether a chat stays with its expert until a message is clearly another's.
    """

    def __init__(self, model: RouterModel, threshold: float | None = None, sessions: bool = True) -> None:
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise ValueError(f"the router's threshold is a probability from 0 to 1, not {threshold}")
        self.model = model
        self.threshold = model.threshold if threshold is None else threshold
        self.sessions = sessions
        self._together: Together[str, NDArray[np.float64]] = Together(lambda texts: list(model.probabilities_of(texts)))

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        threshold: float | None = None,
        adapters: Iterable[str] = (),
        sessions: bool = True,
    ) -> "Router":
        """Load the router of a bundle; `threshold` overrides the trained one, `adapters` are experts beside its own.

        Raises:
            BundleError: the bundle has no router, or it routes to an expert that the bundle does not hold.
        """
        if bundle.router_dir is None:
            raise BundleError(
                f"{bundle.path} has no router: merge it with calibration prompts, or name experts in requests"
            )
        model = load_router(bundle.router_dir, bundle.backbone_dir)
        unknown = sorted(set(model.names) - {*bundle.expert_names, *adapters})
        if unknown:
            raise BundleError(f"the router {bundle.router_dir} names experts that are not there: {', '.join(unknown)}")
        return cls(model, threshold, sessions)

    @property
    def names(self) -> tuple[str, ...]:
        """The experts it can choose."""
        return self.model.names

    @property
    def encodes(self) -> bool:
        """Whether it reads prompts by a neural encoder, which takes milliseconds."""
        return isinstance(self.model.featurizer, EncodedFeatures)

    def decide(self, prompt: str, top_k: int | None = None) -> Decision:
        """Choose the most probable expert, or none if its probability is under the threshold.

        Args:
            prompt: what is asked.
            top_k: most experts that answer together if they are close; None: as the router was trained.
        """
        chances = self._together(prompt) if self.encodes else self.model.probabilities(prompt)
        return self._decision(chances, top_k)

    def decide_all(self, prompts: Sequence[str], top_k: int | None = None) -> list[Decision]:
        """Choose for several prompts, each for itself."""
        return [self._decision(chances, top_k) for chances in self.model.probabilities_of(prompts)]

    def decide_chat(self, turns: Sequence[str], top_k: int | None = None) -> Decision:
        """Choose the expert that continues a chat, from the user's messages.

        Without sessions, the last message alone decides.
        """
        if not self.sessions or len(turns) == 1:
            return self.decide(turns[-1], top_k)
        return followed(self.decide_all(turns[-TURNS:], top_k))

    def _decision(self, chances: NDArray[np.float64], top_k: int | None) -> Decision:
        if len(chances):
            best = int(chances.argmax())
            if chances[best] >= self.threshold:
                mix = mixed(self.names, chances, self.model.top_k if top_k is None else top_k)
                return Decision(self.names[best], float(chances[best]), self.names, chances, mix)
        return Decision(None, max(0.0, 1.0 - float(chances.sum())), self.names, chances)

    def of_model(self, model: RouterModel) -> "Router":
        """Other heads under this router's threshold."""
        return Router(model, self.threshold, self.sessions)

    def without(self, name: str) -> "Router":
        """This router without the head of an expert, if it has one."""
        kept = np.array([row for row, other in enumerate(self.names) if other != name], dtype=np.intp)
        if len(kept) == len(self.names):
            return self
        names, model = tuple(other for other in self.names if other != name), self.model
        return self.of_model(replace(model, names=names, weight=model.weight[kept], bias=model.bias[kept]))

    def with_head_of(self, source: RouterModel, name: str) -> "Router":
        """This router with the head that another router has for an expert.

        If the other one compares prompts with other landmarks, they come with the head.

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
    """Both over the same features: those of `mine`, followed by the landmarks of `source` if they differ."""
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
