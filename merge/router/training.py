"""Training the router: features of all prompts, one head an expert, calibration on held-out wordings."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge.bundle import Featurizer, RouterModel, TextFeatures
from merge.router.background import background_prompts
from merge.router.calibration import UNROUTED, Calibration, calibrate, choose_threshold, foreign_threshold
from merge.router.config import RouterConfig
from merge.router.features import make_features, training_rows, unwhitened
from merge.router.heads import Heads, SparseRows, fit_heads, sparse_rows
from merge.router.phrasings import assign_folds, phrasing_keys

SCORED = 500_000
"""Most held-out scores (prompts times experts) that calibration looks at: each of its steps evaluates all of them."""

COPIED = 10_000
"""Most prompts of which word-dropout copies are made: more prompts contain enough wordings."""

LEAST_PROMPTS = 2
"""Different prompts of a task that a router can be trained on: one to fit and one to hold out."""


def too_few_prompts(task: str) -> str:
    """The message for a task with fewer than `LEAST_PROMPTS`."""
    return f"the router needs at least {LEAST_PROMPTS} different prompts of task {task!r}; a few dozen are recommended"


@dataclass(frozen=True)
class _Data:
    """Features of all prompts and of their copies.

    features [n, D] sparse, the first `counted` of them n-grams; labels [n] int64 (E: no expert); folds [n] int64;
    scored [n] bool: a prompt or a decoy, which calibration looks at, and not a word-dropout copy; foreign [n] bool: a
    prompt of no expert that the user gave.
    """

    features: SparseRows
    counted: int
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    scored: NDArray[np.bool_]
    foreign: NDArray[np.bool_]

    def kept(self, with_copies: bool) -> NDArray[np.intp]:
        """The rows to fit on."""
        return np.flatnonzero(self.scored | with_copies)


@dataclass(frozen=True)
class _HeldOut:
    """Scores [m, E] float64 of prompts by heads that were fitted without their fold, labels [m], foreign [m] bool."""

    scores: Tensor
    labels: Tensor
    foreign: Tensor


@dataclass(frozen=True)
class _Fit:
    """How heads are fitted, and how that did on wordings that were held out."""

    ridge: float
    with_copies: bool
    held_out: _HeldOut
    calibration: Calibration


def train_router(
    prompts_by_task: Mapping[str, Sequence[str]],
    config: RouterConfig | None = None,
    foreign: Sequence[str] = (),
    backbone: Path | None = None,
) -> RouterModel:
    """Train and calibrate a router.

    Args:
        prompts_by_task: the experts' names, each with a few dozen prompts (at least 2).
        config: settings; None for the defaults. Its `foreign` is not read: see `read_foreign`.
        foreign: prompts that belong to no expert, beside the built-in ones.
        backbone: the model directory that the features `backbone` read.

    Raises:
        ValueError: no task, a task with fewer than two different prompts, or no encoder although one is required.
    """
    config = config or RouterConfig()
    names = tuple(sorted(prompts_by_task))
    if not names:
        raise ValueError("a router needs prompts of at least one task")
    for name in names:
        if len(set(prompts_by_task[name])) < LEAST_PROMPTS:
            raise ValueError(too_few_prompts(name))
    tasks = [prompts_by_task[name] for name in names]
    features = make_features(tasks, [*background_prompts(), *foreign], config, backbone)
    data = _prepare(tasks, features, config, foreign=foreign)
    best = _choose_fit(data, len(names), config)
    fitted, kept = best.calibration, data.kept(best.with_copies)
    heads = fit_heads(data.features[kept], data.labels[kept], len(names), best.ridge, config.seed, data.counted)
    return RouterModel(
        names=names,
        weight=_as_stored(unwhitened(features, heads.weight)),
        bias=heads.bias,
        offset=round(fitted.offset, 6),
        temperature=round(fitted.temperature, 6),
        threshold=_threshold(best, config),
        featurizer=features,
        top_k=config.top_k,
    )


def add_expert(
    model: RouterModel, name: str, prompts: Sequence[str], others: Sequence[str], config: RouterConfig | None = None
) -> RouterModel:
    """Give a new expert a head; the other heads and the calibration are not changed.

    Args:
        model: the router so far.
        name: the new expert, which must not be known yet.
        prompts: prompts for it.
        others: prompts of the experts already there, to tell it from; background prompts are added.
        config: settings of the fit; its `ridges` must name the one to use first.

    Raises:
        ValueError: the name is taken, or prompts are missing.
    """
    if name in model.names:
        raise ValueError(f"the router already has a head for {name!r}")
    if not prompts:
        raise ValueError(f"no prompts for the new expert {name!r}")
    config = config or RouterConfig()
    data = _prepare([prompts], model.featurizer, config, extra_background=others)
    heads = fit_heads(data.features, data.labels, 1, config.ridges[0], config.seed, data.counted)
    features = model.featurizer
    if isinstance(features, Featurizer) and not features.words:
        # the heads of format 1 were fitted to 0 and 1, and calibrated so; here it is -1 and 1
        heads = Heads(heads.weight * np.float32(0.5), (heads.bias + np.float32(1)) * np.float32(0.5))
    weight = _as_stored(unwhitened(features, heads.weight))
    return replace(
        model,
        names=(*model.names, name),
        weight=np.concatenate([model.weight, weight]),
        bias=np.concatenate([model.bias, heads.bias]),
    )


def _prepare(
    tasks: Sequence[Sequence[str]],
    features: TextFeatures,
    config: RouterConfig,
    extra_background: Sequence[str] = (),
    foreign: Sequence[str] = (),
) -> _Data:
    rng = random.Random(config.seed)
    copied = config.copies if sum(map(len, tasks)) <= COPIED else 0
    keywords = sorted({word for prompts in tasks for key in phrasing_keys(prompts) for words in key for word in words})
    given = frozenset(foreign)
    texts: list[str] = []
    labels, folds, scored, strange = [], [], [], []
    for label, prompts in enumerate([*tasks, [*background_prompts(), *extra_background, *foreign]]):
        unique = list(dict.fromkeys(prompts))
        for prompt, fold in zip(unique, assign_folds(unique, config.folds), strict=True):
            own = [prompt]
            if label == len(tasks) and prompt not in given:
                own += [_swap_word(prompt, keywords, rng) for _ in range(config.decoys)]
            copies = [_drop_words(text, config.word_dropout, rng) for text in own for _ in range(copied)]
            texts += [*own, *copies]
            labels += [label] * (len(own) + len(copies))
            folds += [fold] * (len(own) + len(copies))
            scored += [True] * len(own) + [False] * len(copies)
            strange += [label == len(tasks) and prompt in given] * (len(own) + len(copies))
    return _Data(
        features=sparse_rows(training_rows(features, texts), features.size),
        counted=features.counted,
        labels=np.array(labels),
        folds=np.array(folds),
        scored=np.array(scored),
        foreign=np.array(strange),
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


def _threshold(fit: _Fit, config: RouterConfig) -> float:
    held_out = fit.held_out
    if config.threshold is not None:
        return config.threshold
    if config.max_foreign_routed is not None:
        chosen = held_out.scores[held_out.foreign]
        return foreign_threshold(chosen, fit.calibration, config.max_foreign_routed)
    most = UNROUTED if config.max_unrouted is None else config.max_unrouted
    return choose_threshold(held_out.scores, held_out.labels, fit.calibration, most)


def _choose_fit(data: _Data, experts: int, config: RouterConfig) -> _Fit:
    """The fit whose held-out scores calibrate best: which ridge, and whether with the word-dropout copies.

    The copies help if a task's prompts have a few wordings (on the zoo's held-out wordings they raise one seed of
    three from 0.928 to 1). They cost a little accuracy if each prompt is worded differently (CLINC150's domains).
    """
    fits = []
    for ridge in config.ridges:
        for with_copies in (False,) if data.scored.all() else (True, False):
            held_out = _held_out_scores(data, experts, ridge, with_copies, config.seed)
            fits.append(_Fit(ridge, with_copies, held_out, calibrate(held_out.scores, held_out.labels)))
    return min(fits, key=lambda fit: fit.calibration.loss)


def _held_out_scores(data: _Data, experts: int, ridge: float, with_copies: bool, seed: int) -> _HeldOut:
    """Scores of prompts by heads that were fitted without their fold.

    Of many prompts, the first folds are used, and at equal steps as many of the experts' prompts as keep the scores
    under `SCORED`. Background prompts of these folds are all used.
    """
    scores, rows, left = [], [], max(SCORED // experts, 2 * experts)
    for fold in sorted(set(data.folds.tolist())):
        if left <= 0:
            break
        kept = data.kept(with_copies)
        kept = kept[data.folds[kept] != fold]
        heads = fit_heads(data.features[kept], data.labels[kept], experts, ridge, seed, data.counted)
        held_out = np.flatnonzero((data.folds == fold) & data.scored)
        own, stray = held_out[data.labels[held_out] < experts], held_out[data.labels[held_out] == experts]
        step = max(1, -(-len(own) // left))
        own = own[::step]
        left = left - len(own) if step == 1 else 0
        rows.append(np.concatenate([own, stray]))
        scores.append(torch.from_numpy(heads.scores(data.features[rows[-1]])))
    chosen = np.concatenate(rows)
    return _HeldOut(torch.cat(scores), torch.from_numpy(data.labels[chosen]), torch.from_numpy(data.foreign[chosen]))


def _as_stored(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the file's float16, so that a router decides the same before and after it is saved."""
    return weight.astype(np.float16).astype(np.float32)
