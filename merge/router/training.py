"""Training the router: features of all prompts, one head an expert, calibration on held-out wordings."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge.bundle import Featurizer, RouterModel
from merge.router.background import background_prompts
from merge.router.calibration import Calibration, calibrate, choose_threshold
from merge.router.config import RouterConfig
from merge.router.heads import Heads, SparseRows, fit_heads, sparse_rows
from merge.router.phrasings import assign_folds, phrasing_keys

SCORED = 500_000
"""Most held-out scores (prompts times experts) that calibration looks at: each of its steps evaluates all of them."""

COPIED = 10_000
"""Most prompts of which word-dropout copies are made: so many prompts bring wordings enough."""

WORDS = 2
"""The longest word n-gram of a new router's features."""

LEAST_PROMPTS = 2
"""Different prompts of a task that a router can be trained on: one to fit and one to hold out."""


def too_few_prompts(task: str) -> str:
    """What is wrong where a task has fewer than `LEAST_PROMPTS`."""
    return f"the router needs at least {LEAST_PROMPTS} different prompts of task {task!r}; a few dozen are right"


@dataclass(frozen=True)
class _Data:
    """Features of all prompts and of their copies.

    features [n, D] sparse; labels [n] int64 (E: no expert); folds [n] int64; scored [n] bool: a prompt or a decoy,
    which calibration looks at, and not a word-dropout copy.
    """

    features: SparseRows
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    scored: NDArray[np.bool_]

    def kept(self, with_copies: bool) -> NDArray[np.intp]:
        """The rows to fit on."""
        return np.flatnonzero(self.scored | with_copies)


@dataclass(frozen=True)
class _Fit:
    """How heads are fitted, and how that did on wordings that were held out: scores [m, E] and labels [m]."""

    ridge: float
    with_copies: bool
    scores: Tensor
    labels: Tensor
    calibration: Calibration


def train_router(prompts_by_task: Mapping[str, Sequence[str]], config: RouterConfig | None = None) -> RouterModel:
    """Train and calibrate a router.

    Args:
        prompts_by_task: the experts' names, each with some dozens of prompts (at least 2).
        config: settings; None for the defaults.

    Raises:
        ValueError: no task, or a task with fewer than two different prompts.
    """
    config = config or RouterConfig()
    names = tuple(sorted(prompts_by_task))
    if not names:
        raise ValueError("a router needs prompts of at least one task")
    for name in names:
        if len(set(prompts_by_task[name])) < LEAST_PROMPTS:
            raise ValueError(too_few_prompts(name))
    featurizer = Featurizer(bits=config.bits, words=WORDS)
    data = _prepare([prompts_by_task[name] for name in names], featurizer, config)
    best = _choose_fit(data, len(names), config)
    fitted, kept = best.calibration, data.kept(best.with_copies)
    heads = fit_heads(data.features[kept], data.labels[kept], len(names), best.ridge, config.seed)
    threshold = config.threshold if config.threshold is not None else choose_threshold(best.scores, best.labels, fitted)
    return RouterModel(
        names=names,
        weight=_as_stored(heads.weight),
        bias=heads.bias,
        offset=round(fitted.offset, 6),
        temperature=round(fitted.temperature, 6),
        threshold=threshold,
        featurizer=featurizer,
    )


def add_expert(
    model: RouterModel, name: str, prompts: Sequence[str], others: Sequence[str], config: RouterConfig | None = None
) -> RouterModel:
    """Give a new expert a head; every other head, and the calibration, stay as they are.

    Args:
        model: the router so far.
        name: the new expert, which must not be known yet.
        prompts: prompts for it.
        others: prompts of the experts already there, to tell it from; background prompts are added.
        config: settings of the fit; its `ridges` must name the one to use first.

    Raises:
        ValueError: the name is taken, or there are no prompts.
    """
    if name in model.names:
        raise ValueError(f"the router knows {name!r} already")
    if not prompts:
        raise ValueError(f"no prompts for the new expert {name!r}")
    config = config or RouterConfig(bits=model.featurizer.bits)
    data = _prepare([prompts], model.featurizer, config, extra_background=others)
    heads = fit_heads(data.features, data.labels, 1, config.ridges[0], config.seed)
    if (
        not model.featurizer.words
    ):  # the heads of format 1 were fitted to 0 and 1, and calibrated so; here it is -1 and 1
        heads = Heads(heads.weight * np.float32(0.5), (heads.bias + np.float32(1)) * np.float32(0.5))
    return RouterModel(
        names=(*model.names, name),
        weight=np.concatenate([model.weight, _as_stored(heads.weight)]),
        bias=np.concatenate([model.bias, heads.bias]),
        offset=model.offset,
        temperature=model.temperature,
        threshold=model.threshold,
        featurizer=model.featurizer,
    )


def _prepare(
    tasks: Sequence[Sequence[str]], featurizer: Featurizer, config: RouterConfig, extra_background: Sequence[str] = ()
) -> _Data:
    rng = random.Random(config.seed)
    copied = config.copies if sum(map(len, tasks)) <= COPIED else 0
    keywords = sorted({word for prompts in tasks for key in phrasing_keys(prompts) for words in key for word in words})
    rows, labels, folds, scored = [], [], [], []
    for label, prompts in enumerate([*tasks, [*background_prompts(), *extra_background]]):
        unique = list(dict.fromkeys(prompts))
        for prompt, fold in zip(unique, assign_folds(unique, config.folds), strict=True):
            texts = [prompt]
            if label == len(tasks):
                texts += [_swap_word(prompt, keywords, rng) for _ in range(config.decoys)]
            copies = [_drop_words(text, config.word_dropout, rng) for text in texts for _ in range(copied)]
            rows += [featurizer.nonzero(text) for text in (*texts, *copies)]
            labels += [label] * (len(texts) + len(copies))
            folds += [fold] * (len(texts) + len(copies))
            scored += [True] * len(texts) + [False] * len(copies)
    return _Data(
        features=sparse_rows(rows, featurizer.size),
        labels=np.array(labels),
        folds=np.array(folds),
        scored=np.array(scored),
    )


def _drop_words(prompt: str, chance: float, rng: random.Random) -> str:
    words = prompt.split()
    kept = [word for word in words if rng.random() >= chance]
    return " ".join(kept or words)


def _swap_word(prompt: str, keywords: Sequence[str], rng: random.Random) -> str:
    words = prompt.split()
    if keywords:
        words[rng.randrange(len(words))] = rng.choice(keywords)
    return " ".join(words)


def _choose_fit(data: _Data, experts: int, config: RouterConfig) -> _Fit:
    """The fit whose held-out scores calibrate best: which ridge, and whether with the word-dropout copies.

    The copies help where a task's prompts are a few wordings (on the zoo's held-out wordings they lift one seed of
    three from 0.928 to 1). They cost a little where each prompt is worded differently (CLINC150's domains).
    """
    fits = []
    for ridge in config.ridges:
        for with_copies in (False,) if data.scored.all() else (True, False):
            scores, labels = _held_out_scores(data, experts, ridge, with_copies, config.seed)
            fits.append(_Fit(ridge, with_copies, scores, labels, calibrate(scores, labels)))
    return min(fits, key=lambda fit: fit.calibration.loss)


def _held_out_scores(data: _Data, experts: int, ridge: float, with_copies: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Scores [m, E] float64 of prompts by heads that were fitted without their fold, and their labels [m].

    Of many prompts, the first folds are used, and at equal steps as many of the experts' prompts as keep the scores
    under `SCORED`. Background prompts of these folds are all used.
    """
    scores, labels, left = [], [], max(SCORED // experts, 2 * experts)
    for fold in sorted(set(data.folds.tolist())):
        if left <= 0:
            break
        kept = data.kept(with_copies)
        kept = kept[data.folds[kept] != fold]
        heads = fit_heads(data.features[kept], data.labels[kept], experts, ridge, seed)
        held_out = np.flatnonzero((data.folds == fold) & data.scored)
        own, stray = held_out[data.labels[held_out] < experts], held_out[data.labels[held_out] == experts]
        step = max(1, -(-len(own) // left))
        own = own[::step]
        left = left - len(own) if step == 1 else 0
        chosen = np.concatenate([own, stray])
        scores.append(torch.from_numpy(heads.scores(data.features[chosen])))
        labels.append(torch.from_numpy(data.labels[chosen]))
    return torch.cat(scores), torch.cat(labels)


def _as_stored(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the file's float16, so that a router decides the same before and after it is saved."""
    return weight.astype(np.float16).astype(np.float32)
