import numpy as np
import pytest
import torch

from merge.bundle import Featurizer, RouterModel
from merge.router import RouterConfig, add_expert, train_router, training
from merge.router.calibration import UNROUTED, calibrate, choose_threshold, class_weights, probabilities
from merge.router.heads import fit_heads
from tests.merge.bundle.test_router_model import dense

WORDS = ["lamp", "chair", "table", "river", "stone", "cloud", "apple", "bread"]
PHRASINGS = {
    "reverse": ["Spell {} backwards.", "Write {} backwards please", "What is {} backwards?", "Say {} backwards"],
    "sort": ["Sort the letters of {}", "Letters of {} sorted", "Please sort the letters in {}", "Sorted letters of {}"],
    "upper": ["Write {} in capitals", "{} in capital letters", "Give {} in capitals please", "Make {} all capitals"],
}
HELD_OUT = {
    "reverse": "How is {} spelled backwards?",
    "sort": "Give the letters of {} sorted",
    "upper": "{} in capitals?",
}
CONFIG = RouterConfig(features=("ngram",), bits=11)


def prompts(task: str) -> list[str]:
    return [phrasing.format(word) for phrasing in PHRASINGS[task] for word in WORDS]


@pytest.fixture(scope="module")
def model():
    return train_router({task: prompts(task) for task in PHRASINGS}, CONFIG)


@pytest.mark.parametrize("task", PHRASINGS)
def test_unseen_wordings_and_words_find_their_expert(model, task: str) -> None:
    for word in ("garden", "window", "planet"):
        chances = model.probabilities(HELD_OUT[task].format(word))
        assert model.names[int(chances.argmax())] == task
        assert chances.max() >= model.threshold


def test_strange_prompts_find_none(model) -> None:
    strange = ["What is the population of Sweden?", "Write a play about two brothers", "0.5 + 0.5", "gibberish qqq zzz"]
    assert all(model.probabilities(text).max() < model.threshold for text in strange)


def test_training_is_deterministic_and_ignores_the_order_of_tasks(model) -> None:
    again = train_router({task: prompts(task) for task in reversed(PHRASINGS)}, CONFIG)
    assert again.names == model.names
    np.testing.assert_array_equal(again.weight, model.weight)
    assert (again.offset, again.temperature, again.threshold) == (model.offset, model.temperature, model.threshold)


def test_copies_are_used_where_they_help_on_held_out_wordings() -> None:
    found = {}
    for copies in (0, 1):
        config = RouterConfig(features=("ngram",), bits=11, copies=copies)
        data = training._prepare([prompts(task) for task in PHRASINGS], Featurizer(bits=11, words=2), config)
        found[copies] = training._choose_fit(data, len(PHRASINGS), config)
    assert not found[0].with_copies
    assert found[1].calibration.loss <= found[0].calibration.loss


def test_calibration_looks_at_a_bounded_number_of_scores(monkeypatch) -> None:
    tasks = {f"task{i}": [f"w{i}a{j} {i * j}x w{j}" for j in range(40)] for i in range(5)}
    config = RouterConfig(bits=10, copies=0, decoys=0)
    data = training._prepare(list(tasks.values()), Featurizer(bits=10, words=2), config)
    fits = []
    monkeypatch.setattr(training, "fit_heads", lambda *args: fits.append(args) or fit_heads(*args))
    labels = training._held_out_scores(data, 5, 1.0, False, 0).labels
    assert (len(fits), int((labels < 5).sum())) == (4, 200)
    fits.clear()
    monkeypatch.setattr(training, "SCORED", 5 * 30)
    labels = training._held_out_scores(data, 5, 1.0, False, 0).labels
    assert len(fits) == 1
    assert int((labels < 5).sum()) <= 30
    assert set(labels.tolist()) == {0, 1, 2, 3, 4, 5}


def test_a_new_expert_leaves_the_others_untouched() -> None:
    two = train_router({task: prompts(task) for task in ("sort", "upper")}, CONFIG)
    three = add_expert(two, "reverse", prompts("reverse"), prompts("sort") + prompts("upper"), CONFIG)
    np.testing.assert_array_equal(three.weight[:2], two.weight)
    np.testing.assert_array_equal(three.bias[:2], two.bias)
    for task in PHRASINGS:
        chances = three.probabilities(HELD_OUT[task].format("garden"))
        assert three.names[int(chances.argmax())] == task
    with pytest.raises(ValueError, match="already has a head for 'sort'"):
        add_expert(two, "sort", ["x"], [])
    with pytest.raises(ValueError, match="no prompts"):
        add_expert(two, "new", [], [])


def test_a_new_head_scores_as_the_heads_of_an_earlier_format_do() -> None:
    old = RouterModel(
        names=("old",),
        weight=np.zeros((1, 1 << 11), dtype=np.float32),
        bias=np.zeros(1, dtype=np.float32),
        offset=0.5,
        temperature=0.1,
        threshold=0.5,
        featurizer=Featurizer(bits=11),
    )
    model = add_expert(old, "sort", prompts("sort"), [], CONFIG)
    score = [
        float(model.weight[1] @ dense(model.featurizer, text) + model.bias[1])
        for text in ("Sort the letters of lamp", "")
    ]
    assert score[0] > 0.8
    assert score[1] < 0.3


def test_no_copies_are_made_of_many_prompts(monkeypatch) -> None:
    tasks, featurizer = [prompts(task) for task in PHRASINGS], Featurizer(bits=11, words=2)
    assert not training._prepare(tasks, featurizer, CONFIG).scored.all()
    monkeypatch.setattr(training, "COPIED", 10)
    assert training._prepare(tasks, featurizer, CONFIG).scored.all()


def test_too_few_prompts_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2 different prompts of task 'a'"):
        train_router({"a": ["same", "same"], "b": ["one", "two"]})
    with pytest.raises(ValueError, match="at least one task"):
        train_router({})


def test_calibration_recovers_what_made_the_scores() -> None:
    gen = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, 3, generator=gen, dtype=torch.float64)
    labels = torch.multinomial(probabilities(scores, 0.4, 0.1), 1, generator=gen).squeeze(1)
    # Weighing classes the same is what train_router wants; here they are drawn, so undo it by even counts.
    least = int(torch.bincount(labels).min())
    keep = torch.cat([torch.nonzero(labels == c).squeeze(1)[:least] for c in range(4)])
    fitted = calibrate(scores[keep], labels[keep])
    assert fitted.temperature == pytest.approx(0.1, rel=0.35)
    assert class_weights(labels).sum() == pytest.approx(1.0)


def test_threshold_lies_between_right_and_stray() -> None:
    scores = torch.tensor([[0.9, 0.0], [0.0, 0.8], [0.1, 0.2], [0.2, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2])
    fitted = calibrate(scores, labels)
    threshold = choose_threshold(scores, labels, fitted)
    chances = probabilities(scores, fitted.offset, fitted.temperature)[:, :2].max(dim=1).values
    assert chances[2:].max() < threshold <= chances[:2].min()


def test_the_threshold_turns_few_of_the_experts_prompts_away() -> None:
    gen = torch.Generator().manual_seed(0)
    own = 0.6 + 0.1 * torch.randn(500, generator=gen, dtype=torch.float64)
    near = 0.5 + 0.1 * torch.randn(500, generator=gen, dtype=torch.float64)  # half of them above some of the own
    scores = torch.cat([own, near])[:, None]
    labels = torch.tensor([0] * 500 + [1] * 500)
    fitted = calibrate(scores, labels)
    chances = probabilities(scores, fitted.offset, fitted.temperature)[:, 0]
    assert float((chances[:500] >= choose_threshold(scores, labels, fitted)).double().mean()) >= 1 - UNROUTED
    lower = choose_threshold(scores, labels, fitted, 0.01)
    assert 0.98 <= float((chances[:500] >= lower).double().mean()) < 1
