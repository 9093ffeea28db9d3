"""Fitting the router's heads: ridge regression on hashed n-grams, solved in closed form.

Semantics:  weight, bias = argmin Σ_n (weight · f_n + bias - [n is this expert's])² + ridge · (|weight|² + bias²)

Solved in the dual, where the matrix is prompts × prompts and one factorisation serves every head. The heads share no
parameter: a new expert gets a head of its own, and the others stay bit for bit what they were.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merge.bundle import Featurizer, RouterModel
from merge.router.background import background_prompts
from merge.router.calibration import Calibration, calibrate, choose_threshold
from merge.router.config import RouterConfig
from merge.router.phrasings import assign_folds, phrasing_keys

LEAST_PROMPTS = 2
"""Different prompts of a task that a router can be trained on: one to fit and one to hold out."""


def too_few_prompts(task: str) -> str:
    """What is wrong where a task has fewer than `LEAST_PROMPTS`."""
    return f"the router needs at least {LEAST_PROMPTS} different prompts of task {task!r}; a few dozen are right"


@dataclass(frozen=True)
class _Data:
    """Features of all prompts and of their copies.

    features [n, D] float32; labels [n] (E: no expert); folds [n]; scored [n] bool: a prompt or a
    decoy, which calibration looks at, and not a word-dropout copy.
    """

    features: Tensor
    labels: Tensor
    folds: Tensor
    scored: Tensor


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
    featurizer = Featurizer(bits=config.bits)
    data = _prepare([prompts_by_task[name] for name in names], featurizer, config)
    kernel = _kernel(data.features)
    targets = torch.nn.functional.one_hot(data.labels, len(names) + 1)[:, :-1].to(torch.float64)
    ridge, scores, fitted = _choose_ridge(kernel, targets, data, config.ridges)
    dual = _solve(kernel, targets, ridge)
    labels = data.labels[data.scored]
    threshold = config.threshold if config.threshold is not None else choose_threshold(scores, labels, fitted)
    return RouterModel(
        names=names,
        weight=_as_stored(dual.T.float() @ data.features),
        bias=dual.sum(dim=0).to(torch.float32).numpy(),
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
    kernel = _kernel(data.features)
    dual = _solve(kernel, (data.labels == 0).to(torch.float64)[:, None], config.ridges[0])
    return RouterModel(
        names=(*model.names, name),
        weight=np.concatenate([model.weight, _as_stored(dual.T.float() @ data.features)]),
        bias=np.concatenate([model.bias, dual.sum(dim=0).to(torch.float32).numpy()]),
        offset=model.offset,
        temperature=model.temperature,
        threshold=model.threshold,
        featurizer=model.featurizer,
    )


def _prepare(
    tasks: Sequence[Sequence[str]], featurizer: Featurizer, config: RouterConfig, extra_background: Sequence[str] = ()
) -> _Data:
    rng = random.Random(config.seed)
    keywords = sorted({word for prompts in tasks for key in phrasing_keys(prompts) for words in key for word in words})
    rows, labels, folds, scored = [], [], [], []
    for label, prompts in enumerate([*tasks, [*background_prompts(), *extra_background]]):
        unique = list(dict.fromkeys(prompts))
        for prompt, fold in zip(unique, assign_folds(unique, config.folds), strict=True):
            texts = [prompt]
            if label == len(tasks):
                texts += [_swap_word(prompt, keywords, rng) for _ in range(config.decoys)]
            copies = [_drop_words(text, config.word_dropout, rng) for text in texts for _ in range(config.copies)]
            rows += [featurizer.features(text) for text in (*texts, *copies)]
            labels += [label] * (len(texts) + len(copies))
            folds += [fold] * (len(texts) + len(copies))
            scored += [True] * len(texts) + [False] * len(copies)
    return _Data(
        features=torch.from_numpy(np.stack(rows)),
        labels=torch.tensor(labels),
        folds=torch.tensor(folds),
        scored=torch.tensor(scored),
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


def _kernel(features: Tensor) -> Tensor:
    """[n, n] float64: inner products of the features, plus 1 for the bias (a feature that is always 1).

    A prompt sets about one bucket in a hundred: the sparse product took 1/20 of the dense one's time.
    """
    product: Tensor = torch.sparse.mm(features.to_sparse(), features.T)
    return product.to(torch.float64) + 1.0


def _solve(kernel: Tensor, targets: Tensor, ridge: float) -> Tensor:
    damped = kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype)
    return torch.cholesky_solve(targets, torch.linalg.cholesky(damped))


def _choose_ridge(
    kernel: Tensor, targets: Tensor, data: _Data, ridges: Sequence[float]
) -> tuple[float, Tensor, Calibration]:
    """The ridge whose held-out scores calibrate best, with those scores (of the prompts themselves) and the fit."""
    best: tuple[float, Tensor, Calibration] | None = None
    for ridge in ridges:
        scores = _held_out_scores(kernel, targets, data, ridge)
        fitted = calibrate(scores, data.labels[data.scored])
        if best is None or fitted.loss < best[2].loss:
            best = (ridge, scores, fitted)
    assert best is not None  # RouterConfig asks for at least one ridge
    return best


def _held_out_scores(kernel: Tensor, targets: Tensor, data: _Data, ridge: float) -> Tensor:
    scores = torch.empty_like(targets)
    for fold in sorted(set(data.folds.tolist())):
        held_out = data.folds == fold
        dual = _solve(kernel[~held_out][:, ~held_out], targets[~held_out], ridge)
        scores[held_out] = kernel[held_out][:, ~held_out] @ dual
    return scores[data.scored]


def _as_stored(weight: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Rounded to the file's float16, so that a router decides the same before and after it is saved."""
    return weight.to(torch.float16).to(torch.float32).numpy()
