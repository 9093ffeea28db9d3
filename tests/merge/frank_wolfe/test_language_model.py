import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from merge.backbone import write_backbone
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import CalibrationError
from merge.experts.config import CalibrationConfig
from merge.frank_wolfe import FrankWolfeConfig, LanguageModelLoss, ObjectiveConfig, language_model_loss
from merge.frank_wolfe import merge_frank_wolfe as search
from merge.frank_wolfe.language_model import FLOOR
from tests.merge.tiny import save_fine_tune, save_tiny, tiny_tokenizer

EXAMPLES = {"a": [("up", "down"), ("left hand", "right")], "b": [("one", "two"), ("three", "four"), ("five", "six")]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny(folder / "base")
    for seed, name in enumerate(("a", "b", "other"), start=1):
        save_fine_tune(base, folder / name, seed, size=0.5)
    return {name: open_checkpoint(folder / name) for name in ("base", "a", "b", "other")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [{"task": t, "prompt": p, "answer": a} for t, pairs in EXAMPLES.items() for p, a in pairs]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def build(models: Mapping[str, Checkpoint], file: Path, **config: object) -> LanguageModelLoss:
    tunes = {name: model for name, model in models.items() if name != "base"}
    objective = ObjectiveConfig.model_validate({"separator": " ", **config})
    return language_model_loss(models["base"], tunes, CalibrationConfig(file=file), objective)


def tensors(model: Checkpoint) -> dict[str, Tensor]:
    return {name: model.tensor(name, torch.float32) for name in model.tensors}


def by_hand(model: Checkpoint, task: str) -> Tensor:
    """One sequence at a time, without padding."""
    decoder = LlamaForCausalLM.from_pretrained(model.path)
    tokenizer = tiny_tokenizer()
    total, count = torch.zeros(()), 0
    for prompt, answer in EXAMPLES[task]:
        head = tokenizer(prompt)["input_ids"]
        reply = [*tokenizer(f" {answer}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logits = decoder(torch.tensor([head + reply])).logits[0, len(head) - 1 : -1]
        total = total + functional.cross_entropy(logits, torch.tensor(reply), reduction="sum")
        count += len(reply)
    return total / count


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_loss_is_the_mean_cross_entropy_of_the_replies(
    models: dict[str, Checkpoint], file: Path, batch_size: int
) -> None:
    objective = build(models, file, batch_size=batch_size)
    expected = {task: float(by_hand(models["other"], task).detach()) for task in EXAMPLES}
    here = tensors(models["other"])
    assert objective.tasks == ("a", "b")
    assert objective.loss(here) == pytest.approx(sum(expected.values()) / 2, rel=1e-5)
    assert objective.loss_and_gradient(here)[0] == pytest.approx(sum(expected.values()) / 2, rel=1e-5)
    for task, loss in expected.items():
        assert objective.loss_and_gradient(here, task)[0] == pytest.approx(loss, rel=1e-5)


def test_the_gradient_is_autograds(models: dict[str, Checkpoint], file: Path) -> None:
    objective = build(models, file, batch_size=2)
    here = tensors(models["a"])
    decoder_loss = by_hand(models["a"], "b")
    found = objective.loss_and_gradient(here, "b")[1]
    both = objective.loss_and_gradient(here)[1]
    other = objective.loss_and_gradient(here, "a")[1]
    step = {name: torch.randn_like(tensor) * 1e-3 for name, tensor in here.items()}
    slope = sum(float((found[name] * step[name]).sum()) for name in here)
    ahead, behind = (
        objective.loss_and_gradient({n: t + sign * step[n] for n, t in here.items()}, "b")[0] for sign in (1, -1)
    )
    assert slope == pytest.approx((ahead - behind) / 2, rel=1e-2)
    assert objective.loss_and_gradient(here, "b")[0] == pytest.approx(float(decoder_loss.detach()), rel=1e-5)
    for name in here:
        torch.testing.assert_close(both[name], (found[name] + other[name]) / 2, rtol=1e-4, atol=1e-6)


def test_the_logarithmic_scale(models: dict[str, Checkpoint], file: Path) -> None:
    plain, logarithmic = build(models, file), build(models, file, scale="log")
    here = tensors(models["a"])
    losses = plain.task_losses(here)
    expected = sum(math.log(loss + FLOOR) for loss in losses.values()) / 2
    assert logarithmic.task_losses(here) == losses
    assert logarithmic.loss(here) == pytest.approx(expected, rel=1e-6)
    found, gradient = logarithmic.loss_and_gradient(here)
    assert found == pytest.approx(expected, rel=1e-6)
    parts = {task: plain.loss_and_gradient(here, task)[1] for task in losses}
    alone = logarithmic.loss_and_gradient(here, "b")
    assert alone[0] == pytest.approx(math.log(losses["b"] + FLOOR), rel=1e-6)
    for name in here:
        scaled = {task: parts[task][name] / (losses[task] + FLOOR) for task in losses}
        torch.testing.assert_close(gradient[name], sum(scaled.values()) / 2, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone[1][name], scaled["b"], rtol=1e-4, atol=1e-6)


def test_nothing_but_the_given_parameters_counts_or_changes(models: dict[str, Checkpoint], file: Path) -> None:
    objective = build(models, file)
    base = tensors(models["base"])
    before = objective.loss(base)
    name = "model.layers.0.mlp.up_proj.weight"
    lent = {name: tensors(models["a"])[name]}
    kept = lent[name].clone()
    mixed, gradient = objective.loss_and_gradient(lent)
    assert set(gradient) == {name}
    assert torch.equal(lent[name], kept)
    assert not lent[name].requires_grad
    assert mixed == pytest.approx(objective.loss(base | lent), rel=1e-6)
    assert mixed != before
    assert objective.loss({}) == before


def test_an_embedding_that_is_the_head_as_well_moves_as_both(models: dict[str, Checkpoint], file: Path) -> None:
    objective = build(models, file)
    embedding = {"model.embed_tokens.weight": tensors(models["a"])["model.embed_tokens.weight"]}
    gradient = objective.loss_and_gradient(embedding)[1]["model.embed_tokens.weight"]
    unseen = tiny_tokenizer().convert_tokens_to_ids("z")
    assert float(gradient[unseen].abs().sum()) > 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nothing": torch.zeros(1)}, "nothing is not a parameter of the model"),
        ({"model.norm.weight": torch.zeros(3)}, r"model.norm.weight is torch.float32 \[3\]; the model has .*\[32\]"),
        ({"model.norm.weight": torch.zeros(32).double()}, "model.norm.weight is torch.float64"),
    ],
)
def test_other_parameters_are_refused(
    models: dict[str, Checkpoint], file: Path, parameters: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(models, file).loss(parameters)


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ('{"task": "a", "prompt": "p"}', {}, "line 1 must be an object with the strings task, prompt, answer"),
        ('{"task": "a", "prompt": ""}', {"replies": "fine_tune"}, "line 1 has an empty prompt"),
        ("{", {}, "line 1 is not valid JSON"),
        ("", {}, "is empty: a loss needs prompts"),
        ('{"task": "a", "prompt": "p", "answer": "r"}', {"tasks": ["c"]}, "no prompt of the target task 'c'; it has a"),
        ('{"task": "c", "prompt": "p"}', {"replies": "fine_tune"}, "target task 'c' has no fine-tune to reply"),
    ],
)
def test_unusable_examples_are_named(
    models: dict[str, Checkpoint], tmp_path: Path, text: str, config: dict[str, object], message: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        build(models, file, **config)
    with pytest.raises(CalibrationError, match="cannot read the calibration file"):
        build(models, tmp_path / "missing")


@pytest.mark.parametrize(("variant", "granularity"), [("hard", "layer"), ("soft", "task")])
def test_end_to_end(models: dict[str, Checkpoint], file: Path, tmp_path: Path, variant: str, granularity: str) -> None:
    objective = build(models, file, replies="fine_tune", answer_tokens=8)
    config = FrankWolfeConfig.model_validate({"variant": variant, "granularity": granularity, "steps": 2})
    tunes = {name: model for name, model in models.items() if name != "base"}
    merge = search(models["base"], tunes, objective, config)
    losses = [step.loss for step in merge.steps]
    assert losses[-1] < losses[0] - 0.05
    write_backbone(tmp_path, models["base"], tunes, merge.method)
    written = open_checkpoint(tmp_path)
    assert objective.loss(tensors(written)) == pytest.approx(objective.loss(merge.tensors), rel=1e-6)
    assert objective.loss(tensors(written)) < losses[0] - 0.1
    LlamaForCausalLM.from_pretrained(tmp_path)


def test_tasks_and_prompts_are_chosen(models: dict[str, Checkpoint], file: Path) -> None:
    objective = build(models, file, tasks=["b"], per_task=1)
    assert objective.tasks == ("b",)
    lines = file.read_text().splitlines()
    file.write_text(lines[2])
    assert objective.loss({}) == build(models, file).loss({})


def test_prompts_go_through_a_chat_template(models: dict[str, Checkpoint], file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(models["base"].path, folder)
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} {% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    chat = {**models, "base": open_checkpoint(folder)}
    # The blank after a prompt is the template's now, so the reply is the answer alone.
    assert build(chat, file, separator="").loss({}) != build(models, file).loss({})
    tunes = {name: model for name, model in chat.items() if name != "base"}
    usual = language_model_loss(chat["base"], tunes, CalibrationConfig(file=file), ObjectiveConfig())
    assert usual.loss({}) == build(chat, file, separator="").loss({})
    bare = language_model_loss(
        chat["base"], tunes, CalibrationConfig(file=file, chat_template="none"), ObjectiveConfig(separator=" ")
    )
    assert bare.loss({}) == build(models, file).loss({})
