"""The recipe's `router:` block."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class RouterConfig(BaseModel):
    """How to train the router.

    Attributes:
        bits: log2 of the number of hash buckets for n-grams.
        folds: cross-validation folds; prompts worded alike stay in one fold.
        word_dropout: chance that a word is left out of a training copy, so that no single word is relied on.
        copies: such copies of each prompt; heads are fitted with or without them, by the held-out likelihood.
            Of more than 10,000 prompts none are made.
        decoys: copies of each background prompt in which one word gives way to a task's frequent word, so that a single
            keyword ("History of JSON") does not decide.
        ridges: candidate strengths of the regularisation, above 0; the one with the best held-out likelihood is taken.
        threshold: probability below which the backbone answers alone; None: chosen on held-out scores.
        seed: seed of the word dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int = Field(default=15, ge=8, le=20)
    folds: int = Field(default=4, ge=2, le=20)
    word_dropout: float = Field(default=0.25, ge=0.0, lt=1.0)
    copies: int = Field(default=1, ge=0, le=10)
    decoys: int = Field(default=3, ge=0, le=10)
    ridges: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(default=(1.0,), min_length=1)
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    seed: int = 0
