"""Fitting the heads: for each expert, a linear classifier of its prompts against all others.

Semantics:  weight, bias = argmin Σ_n max(0, 1 - y_n (weight · d f_n + bias))² + ridge/2 (|weight|² + bias²)
            with y_n = 1 if prompt n is the expert's, else -1, and d = diag(idf)

Features that count words are scaled by inverse document frequency while a head is fitted, and the scale is folded into
its weight: a head needs nothing but itself and the features, and can be added to other heads. Heads are fitted one by
one by scikit-learn's LinearSVC (liblinear, dual coordinate descent on sparse rows). If there are many prompts, a
head sees the others' prompts nearest to its own and a sample of the rest: on CLINC150's 150 intents with 100 prompts
each, 2,000 of them took a third of the time that all 15,000 took, at the same accuracy (0.923).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SparseRows = Any
"""scipy.sparse.csr_matrix [n, D] float64; scipy has no types."""

NEGATIVES = 2000
"""Prompts of other experts that a head is fitted against: half the nearest, half drawn from the others."""

ITERATIONS = 10_000


@dataclass(frozen=True)
class Heads:
    """weight [E, D] float32, bias [E] float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def scores(self, features: SparseRows) -> NDArray[np.float64]:
        """[n, E] float64."""
        return np.asarray(features @ self.weight.T.astype(np.float64) + self.bias, dtype=np.float64)


def sparse_rows(rows: Sequence[tuple[NDArray[np.intp], NDArray[np.float32]]], size: int) -> SparseRows:
    """A matrix [n, `size`] of rows given by the places and values of what is not 0."""
    from scipy.sparse import csr_matrix  # takes a second to import; serving needs neither it nor scikit-learn

    ends = np.cumsum([0, *(len(places) for places, _ in rows)])
    places = np.concatenate([places for places, _ in rows]).astype(np.int32)
    values = np.concatenate([values for _, values in rows]).astype(np.float64)
    return csr_matrix((values, places, ends.astype(np.int32)), shape=(len(rows), size))


def fit_heads(
    features: SparseRows, labels: NDArray[np.int64], experts: int, ridge: float, seed: int, counted: int | None = None
) -> Heads:
    """Fit a head for each of the labels 0 to `experts` - 1.

    Args:
        features: [n, D].
        labels: [n]; `experts` stands for no expert, and each of those prompts counts against every head.
        experts: E.
        ridge: strength of the regularisation.
        seed: of the sample of other experts' prompts.
        counted: features, the first ones, that count words; None: all.
    """
    from scipy.sparse import diags
    from sklearn.svm import LinearSVC

    counted = features.shape[1] if counted is None else counted
    idf = np.concatenate(
        [inverse_document_frequency(features[:, :counted]), np.ones(features.shape[1] - counted, dtype=np.float64)]
    )
    scaled = (features @ diags(idf)).tocsr()
    weight = np.zeros((experts, features.shape[1]), dtype=np.float32)
    bias = np.zeros(experts, dtype=np.float32)
    for head in range(experts):
        rows = _rows_of(scaled, labels, head, experts, np.random.default_rng([seed, head]))
        classifier = LinearSVC(C=1.0 / ridge, max_iter=ITERATIONS, random_state=seed)
        classifier.fit(scaled[rows], labels[rows] == head)
        weight[head], bias[head] = classifier.coef_[0] * idf, classifier.intercept_[0]
    return Heads(weight, bias)


def inverse_document_frequency(features: SparseRows) -> NDArray[np.float64]:
    """[D] float64: log((1 + n) / (1 + prompts with the feature)) + 1, times what keeps the rows' mean square length."""
    count = features.shape[0]
    holding = np.bincount(features.indices, minlength=features.shape[1])
    idf = np.log((1 + count) / (1 + holding)) + 1
    squares = np.square(features.data)
    length = np.sqrt(squares.sum() / max(float(squares @ np.square(idf[features.indices])), 1e-12))
    return np.asarray(idf * length, dtype=np.float64)


def _rows_of(
    scaled: SparseRows, labels: NDArray[np.int64], head: int, experts: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """The prompts that a head is fitted on, ascending."""
    others = np.flatnonzero((labels != head) & (labels != experts))
    if len(others) <= NEGATIVES:
        return np.arange(len(labels))
    own, stray = np.flatnonzero(labels == head), np.flatnonzero(labels == experts)
    likeness = (scaled @ np.asarray(scaled[own].mean(axis=0)).ravel())[others]
    order = np.argpartition(-likeness, NEGATIVES // 2)
    near, far = others[order[: NEGATIVES // 2]], others[order[NEGATIVES // 2 :]]
    return np.sort(np.concatenate([own, stray, near, rng.choice(far, NEGATIVES - len(near), replace=False)]))
