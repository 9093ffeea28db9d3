import numpy as np
import pytest

from merge.bundle import Featurizer
from merge.router import background_prompts
from merge.router.heads import fit_heads, inverse_document_frequency, sparse_rows
from tests.merge.bundle.test_router_model import dense

FEATURIZER = Featurizer(bits=11, words=2)
TASKS = [
    [f"spell the word w{i}q backwards" for i in range(20)],
    [f"sort the letters of w{i}q" for i in range(20)],
    [f"write w{i}q in capitals" for i in range(20)],
]
TEXTS = [*(text for task in TASKS for text in task), *background_prompts()]
LABELS = np.array([i for i in range(3) for _ in range(20)] + [3] * len(background_prompts()))
FEATURES = sparse_rows([FEATURIZER.nonzero(text) for text in TEXTS], FEATURIZER.size)


def test_rows_are_the_features_of_the_texts() -> None:
    expected = np.stack([dense(FEATURIZER, text) for text in TEXTS])
    np.testing.assert_array_equal(FEATURES.toarray().astype(np.float32), expected)


def test_a_head_is_at_the_minimum_of_its_loss() -> None:
    ridge = 0.5
    heads = fit_heads(FEATURES, LABELS, 3, ridge, seed=0)
    idf = inverse_document_frequency(FEATURES)
    inputs = np.hstack([FEATURES.toarray() * idf, np.ones((len(TEXTS), 1))])
    for head in range(3):
        solution = np.append(heads.weight[head] / idf, heads.bias[head])
        signs = np.where(head == LABELS, 1.0, -1.0)
        slack = np.maximum(0.0, 1.0 - signs * (inputs @ solution))
        gradient = ridge * solution - 2.0 * inputs.T @ (signs * slack)
        at_zero = -2.0 * inputs.T @ signs
        assert np.linalg.norm(gradient) < 1e-3 * np.linalg.norm(at_zero)


def test_a_head_does_not_depend_on_which_other_heads_are_fitted() -> None:
    together = fit_heads(FEATURES, LABELS, 3, 1.0, seed=0)
    alone = fit_heads(FEATURES, np.where(LABELS == 0, 0, 1), 1, 1.0, seed=0)
    np.testing.assert_allclose(alone.weight[0], together.weight[0], atol=1e-5)
    assert alone.bias[0] == pytest.approx(together.bias[0], abs=1e-5)


def test_rare_features_weigh_more_and_rows_keep_their_length() -> None:
    idf = inverse_document_frequency(FEATURES)
    holding = np.bincount(FEATURES.indices, minlength=FEATURIZER.size)
    order = np.argsort(holding, kind="stable")
    assert (np.diff(idf[order]) <= 1e-12).all()
    assert np.square(FEATURES.data * idf[FEATURES.indices]).sum() == pytest.approx(np.square(FEATURES.data).sum())


def test_of_many_other_prompts_the_nearest_and_a_sample_are_fitted_on(monkeypatch) -> None:
    from merge.router import heads as module

    monkeypatch.setattr(module, "NEGATIVES", 10)
    rows = module._rows_of(FEATURES, LABELS, 0, 3, np.random.default_rng(0))
    counts = np.bincount(LABELS[rows], minlength=4)
    assert counts.tolist()[0] == 20
    assert counts[1] + counts[2] == 10
    assert counts[3] == len(background_prompts())
    assert (np.diff(rows) > 0).all()
    sampled = fit_heads(FEATURES, LABELS, 3, 1.0, seed=0).scores(FEATURES)[:60]
    assert (sampled.argmax(axis=1) == LABELS[:60]).all()
