"""The names that a request's `model` may say, and what each of them runs."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from merge.bundle import Bundle, BundleError, GenerationSettings
from serve.api.errors import invalid, model_not_found, no_router

AUTO = "auto"
BACKBONE = "backbone"


@dataclass(frozen=True)
class Target:
    """What answers a prompt.

    Attributes:
        experts: (name, gate) of each expert; none: the backbone alone.
        confidence: the router's, if it decided.
        session: "kept" or "switched" if a chat's earlier turns influenced the decision.
    """

    experts: tuple[tuple[str, float], ...] = ()
    confidence: float | None = None
    session: str | None = None

    @property
    def label(self) -> str:
        """The expert's name, "a+b" for a mix, or "backbone"."""
        return "+".join(name for name, _ in self.experts) or BACKBONE


@dataclass(frozen=True)
class Entry:
    """One expert.

    Attributes:
        digest: of its content.
        root: its file, or the directory of a LoRA adapter.
        parent: the model that it belongs to, as /v1/models reports it.
        settings: what its requests follow in place of the backbone's.
    """

    digest: str
    root: str
    parent: str = BACKBONE
    settings: GenerationSettings = field(default_factory=GenerationSettings)


@dataclass(frozen=True)
class Catalogue:
    """Names and digests of a bundle.

    Attributes:
        routing: names that let the router decide; the first is the bundle's. Without a router they mix experts, and
            all but "auto" are the backbone.
        experts: name → entry.
        backbone_digest: digest of the backbone's weights.
        backbone_root: its directory.
        created: seconds since 1970.
        max_model_len: longest sequence in tokens.
        routed: whether there is a router.
    """

    routing: tuple[str, ...]
    experts: Mapping[str, Entry]
    backbone_digest: str
    backbone_root: str
    created: int
    max_model_len: int
    routed: bool = True

    def __post_init__(self) -> None:
        for name in (*self.routing, BACKBONE):
            if name in self.experts:
                raise ValueError(
                    f"{name!r} names an expert and also the served model; choose another --served-model-name"
                    if name not in (AUTO, BACKBONE)
                    else f"an expert may not be named {name!r}: requests use that name for something else"
                )
        if BACKBONE in self.routing:
            raise ValueError(f"the served model may not be named {BACKBONE!r}: that name asks for no expert")

    @classmethod
    def from_bundle(cls, bundle: Bundle, max_model_len: int, served_names: Sequence[str] = ()) -> "Catalogue":
        """Names of a bundle.

        Args:
            bundle: the bundle.
            max_model_len: longest sequence in tokens.
            served_names: names that route, instead of the bundle's own; "auto" always does.

        Raises:
            ValueError: a name means two things.
        """
        manifest = bundle.manifest
        routing = dict.fromkeys((*(served_names or (manifest.name,)), AUTO))
        return cls(
            routing=tuple(routing),
            experts={name: _entry(bundle, name) for name in bundle.expert_names},
            backbone_digest=manifest.backbone_digest,
            backbone_root=str(bundle.backbone_dir),
            created=int(datetime.fromisoformat(manifest.created).timestamp()),
            max_model_len=max_model_len,
            routed=bundle.router_dir is not None,
        )

    def with_expert(self, name: str, entry: Entry) -> "Catalogue":
        """A catalogue with another expert, or with another content of an expert.

        Raises:
            ValueError: the name means something else.
        """
        return dataclasses.replace(self, experts={**self.experts, name: entry})

    def with_adapter(
        self, name: str, digest: str, root: str, base: str | None, settings: GenerationSettings
    ) -> "Catalogue":
        """A catalogue with another LoRA adapter.

        Its parent is `base` or, as in vLLM, the served model's name; with a router, which that name asks, the backbone.

        Raises:
            ValueError: the name means something else.
        """
        parent = base or (BACKBONE if self.routed else self.routing[0])
        return self.with_expert(name, Entry(digest, root, parent, settings))

    def without_expert(self, name: str) -> "Catalogue":
        """A catalogue without an expert."""
        return dataclasses.replace(self, experts={n: entry for n, entry in self.experts.items() if n != name})

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that `model` may say and that answers."""
        return (*self._answering, BACKBONE, *self.experts)

    def settings(self, target: Target) -> GenerationSettings:
        """The own settings of what answers; a mix follows those of its heaviest expert."""
        heaviest, _ = max(target.experts, key=lambda expert: abs(expert[1]), default=("", 0.0))
        entry = self.experts.get(heaviest)
        return GenerationSettings() if entry is None else entry.settings

    @property
    def has_templates(self) -> bool:
        """Whether an expert has its own chat template."""
        return any(entry.settings.chat_template is not None for entry in self.experts.values())

    def knows(self, model: str) -> bool:
        """Whether `model` may say this name."""
        return model == BACKBONE or model in self.experts or model in self.routing

    def resolve(self, model: str | None, experts: Mapping[str, float] | None = None) -> Target | None:
        """What a request asks for, by default from the served model; None leaves it to the router.

        Raises:
            ApiError: 404 for a name that does not exist, 400 if `model` and `experts` disagree
                or there is no router.
        """
        if model is None:
            model = self.routing[0]
        if not self.knows(model):
            raise model_not_found(model, self.names)
        if experts is None:
            if model in self.experts:
                return Target(((model, 1.0),))
            if model == AUTO and not self.routed:
                raise no_router()
            return None if model in self.routing and self.routed else Target()
        if model not in self.routing:
            raise invalid(
                "experts",
                f"experts mixes under the model {self.routing[0]!r}; {model!r} already says what runs",
            )
        for name in experts:
            if name not in self.experts:
                raise model_not_found(name, tuple(self.experts), param=f"experts.{name}")
        return Target(tuple(experts.items()))

    def fingerprint(self, weights: Iterable[tuple[str, float]]) -> str:
        """OpenAI's `system_fingerprint`: equal if the same backbone and (content digest, gate)s answered."""
        parts = {self.backbone_digest, *(f"{digest}:{gate!r}" for digest, gate in weights)}
        return "fp_" + hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]

    def card(self, model: str) -> dict[str, object]:
        """OpenAI's model object of one name.

        Raises:
            ApiError: 404.
        """
        if not self.knows(model):
            raise model_not_found(model, self.names)
        if (entry := self.experts.get(model)) is not None:
            return self._card(model, entry.root, entry.parent)
        return self._card(model, self.backbone_root, None)

    def cards(self) -> list[dict[str, object]]:
        """OpenAI's model objects: the served names, the backbone, each expert with the backbone as its parent."""
        routed = [self._card(name, self.backbone_root, None) for name in self._answering]
        experts = [self._card(name, entry.root, entry.parent) for name, entry in self.experts.items()]
        return [*routed, self._card(BACKBONE, self.backbone_root, None), *experts]

    @property
    def _answering(self) -> tuple[str, ...]:
        """The names of `routing` that answer without `experts`: clients take the first model that is listed."""
        return tuple(name for name in self.routing if self.routed or name != AUTO)

    def _card(self, name: str, root: str, parent: str | None) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "overtone",
            "root": root,
            "parent": parent,
            "max_model_len": self.max_model_len,
        }


def _entry(bundle: Bundle, name: str) -> Entry:
    """The entry of a bundle's expert. One that cannot be read is refused when a request names it."""
    path = bundle.expert_path(name)
    try:
        settings = bundle.expert_layout(name).settings
    except BundleError:
        settings = GenerationSettings()
    return Entry(bundle.card(name).digest, str(path), settings=settings)
