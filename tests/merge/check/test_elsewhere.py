"""What experts do to requests that are not their tasks'."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge.bundle import Expert
from merge.check.elsewhere import Elsewhere, ask_elsewhere
from merge.check.general import general_reference
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts.calibration import continue_greedily
from tests.merge.general import add_template, ask_little
from tests.merge.tiny import save_fine_tune, save_tiny

PROMPTS = {"one": [[5, 6, 7], [8, 9]], "two": [[10, 11, 12]]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root: Path = tmp_path_factory.mktemp("models")
    save_tiny(root / "base")
    for seed, name in enumerate(("one", "two")):
        save_fine_tune(root / "base", root / name, seed)
    add_template(root / "base")
    return {name: open_checkpoint(root / name) for name in ("base", "one", "two")}


def expert(models: Mapping[str, Checkpoint], name: str, times: float) -> Expert:
    """What the fine-tune's norms differ from the base's by, many times over."""
    norms = [key for key, info in models["base"].tensors.items() if len(info.shape) == 1]
    dense = {key: times * (models[name].tensor(key) - models["base"].tensor(key)) for key in norms}
    return Expert(name, "", 0.0, {}, dense)


def measured(
    models: Mapping[str, Checkpoint], experts: Mapping[str, Expert], prompts: Mapping[str, list[list[int]]] = PROMPTS
) -> dict[str, Elsewhere]:
    requests = ask_elsewhere(models["base"], prompts)
    assert requests is not None
    return {name: requests.measure(expert, models[name], models["base"]) for name, expert in experts.items()}


def test_experts_beside_their_fine_tunes(models: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    ask_little(monkeypatch)
    found = measured(models, {"one": expert(models, "one", 0.0), "two": expert(models, "two", 100.0)})
    one, two = found["one"], found["two"]
    assert (one.general, one.others) == (0.0, 0.0), "nothing is added to a backbone that is the base"
    assert one.tuned_others is not None
    assert min(one.tuned_general, one.tuned_others) > 0
    assert one.concerns() == []
    assert two.general > two.tuned_general + 0.1
    assert any(concern.startswith("general questions: KL to the base is") for concern in two.concerns())


def test_general_questions_alone(models: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    ask_little(monkeypatch)
    (found,) = measured(models, {"one": expert(models, "one", 1.0)}, {}).values()
    assert (found.others, found.tuned_others) == (None, None)
    assert "other tasks" not in found.summary()


def test_general_questions_are_not_asked_again(models: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    ask_little(monkeypatch)
    experts = {"one": expert(models, "one", 1.0)}
    anew = measured(models, experts)["one"]
    reference = general_reference(models["base"])
    assert reference is not None
    asked: list[int] = []

    def recorded(model: Any, prompts: list[Any], *rest: Any) -> Any:
        asked.append(len(prompts))
        return continue_greedily(model, prompts, *rest)

    monkeypatch.setattr("merge.check.elsewhere.continue_greedily", recorded)
    requests = ask_elsewhere(models["base"], PROMPTS, reference)
    assert requests is not None
    assert asked == [3], "the prompts of the tasks alone"
    again = requests.measure(experts["one"], models["one"], models["base"])
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(anew), rel=1e-4)


def test_a_base_without_general_knowledge_is_not_asked(models: dict[str, Checkpoint]) -> None:
    assert ask_elsewhere(models["base"], PROMPTS) is None


def test_a_base_without_a_chat_template_is_not_asked(models: dict[str, Checkpoint]) -> None:
    assert ask_elsewhere(models["one"], PROMPTS) is None


def test_concerns_compare_with_the_fine_tune() -> None:
    assert Elsewhere(2.0, 1.9, 3.0, 2.9).concerns() == []
    assert Elsewhere(0.05, 0.0, None, None).concerns() == []
    assert Elsewhere(2.0, 0.1, 3.0, 2.9).concerns() == [
        "general questions: KL to the base is 2.000 nats a token, the fine-tune's is 0.100: prompts outside its task "
        "may get wrong answers"
    ]
    assert [concern.split(":")[0] for concern in Elsewhere(0.0, 0.0, 3.0, 0.1).concerns()] == ["prompts of other tasks"]
