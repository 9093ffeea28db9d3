from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.evaluation import Question, Reply, evaluate
from benchmarks.evaluation import run as run_module
from merge.bundle import BundleWriter, Expert, ManifestFields, SparseDelta, backbone_digest, open_bundle, write_expert
from merge.evaluate import expert_size
from serve.demo.check import unseen_prompts
from serve.demo.zoo import TASKS, Example

EXAMPLES = {
    "up": [Example("say a", "A"), Example("say b", "B")],
    "twice": [Example("two a", "aa"), Example("two b", "bb")],
}


@pytest.fixture
def bundle(tmp_path: Path):
    with BundleWriter(tmp_path / "bundle") as writer:
        weights = {"w": torch.ones(4, 25, dtype=torch.bfloat16), "n": torch.ones(100, dtype=torch.bfloat16)}
        save_file(weights, writer.path / "backbone" / "model.safetensors")
        (writer.path / "backbone" / "config.json").write_text("{}")
        digest = backbone_digest(writer.path / "backbone")
        delta = SparseDelta(torch.zeros(4, 1, dtype=torch.uint16), torch.ones(4, 1, dtype=torch.bfloat16))
        for name in EXAMPLES:
            expert = Expert(name, digest, 0.04, {"w": delta}, {})
            write_expert(writer.path / "experts" / f"{name}.safetensors", expert)
        writer.finish(ManifestFields(name="b", created="now"))
    return open_bundle(tmp_path / "bundle")


def answer(model: str, prompt: str) -> Reply:
    """A model that is right with the right expert; the router mistakes "two b" for "up"."""
    letter = prompt[-1]
    if model == "auto":
        model = "twice" if prompt == "two a" else "up"
    text = {"up": letter.upper(), "twice": 2 * letter, "backbone": "A"}[model]
    return Reply(f"\n{text}", model)


def ask(questions: Sequence[Question]) -> list[Reply]:
    return [answer(question.model, question.prompt) for question in questions]


@pytest.fixture(autouse=True)
def fine_tune_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_fine_tune_score", lambda directory, examples: float(directory.name == "up"))


def test_each_column_is_scored_by_its_own_question(bundle) -> None:
    result = evaluate(ask, bundle, EXAMPLES, {"up": Path("up"), "twice": Path("twice")})
    assert vars(result.tasks["up"]) == {"fine_tune": 1.0, "backbone": 0.5, "expert": 1.0, "routed": 1.0}
    assert vars(result.tasks["twice"]) == {"fine_tune": 0.0, "backbone": 0.0, "expert": 1.0, "routed": 0.5}
    assert result.router_accuracy == 0.75
    assert result.prompts_per_task == 2


def test_size_counts_all_of_the_backbone(bundle) -> None:
    density, bytes_fraction = expert_size(bundle)
    assert density == 4 / 200
    assert bytes_fraction == 16 / bundle.manifest.backbone_bytes


def test_tasks_without_an_expert_and_uneven_counts_are_refused(bundle) -> None:
    with pytest.raises(ValueError, match="no expert for other; it holds twice, up"):
        evaluate(ask, bundle, {"other": EXAMPLES["up"]}, {})
    with pytest.raises(ValueError, match="same number"):
        evaluate(ask, bundle, {**EXAMPLES, "up": EXAMPLES["up"][:1]}, {})


def test_unseen_prompts_are_not_in_the_training_split() -> None:
    unseen = unseen_prompts(20)
    assert set(unseen) == {task.name for task in TASKS}
    for task in TASKS:
        known = {example.prompt for example in task.generate("train", 200, 0, phrasings="all")}
        assert not known & {example.prompt for example in unseen[task.name]}
