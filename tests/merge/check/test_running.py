"""Recipes that run the models on prompts, on models that cannot be run."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tests.merge.check.conftest import edit_tensors, errors, warnings, write_recipe

RUNNING = [
    {},
    {"experts": {"values": "rescaled", "selection": "magnitude", "rescale": "calibrated"}},
    {"merge_method": "frank_wolfe", "experts": {"selection": "magnitude", "values": "exact"}},
]


def write_prompts(folder: Path) -> dict[str, str]:
    lines = [
        json.dumps({"task": name, "prompt": f"a b{n}", "answer": "c"}) for name in ("one", "two") for n in range(4)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return {"file": "prompts.jsonl"}


def become_encoders(folder: Path) -> None:
    config = BertConfig(
        vocab_size=33, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    for name in ("base", "one", "two"):
        for file in ("model.safetensors", "config.json", "generation_config.json"):
            (folder / name / file).unlink(missing_ok=True)
        BertForMaskedLM(config).save_pretrained(folder / name)


@pytest.mark.parametrize("settings", RUNNING, ids=["calibrated experts", "calibrated factor", "frank_wolfe"])
def test_prompts_need_a_decoder(models: Path, settings: dict[str, object]) -> None:
    become_encoders(models)
    write_recipe(models, calibration=write_prompts(models), **settings)
    found = [message for message in errors(models, quick=True) if message.startswith("base: ")]
    assert len(found) == 1
    assert "cannot be run as a causal language model: config.json says BertForMaskedLM" in found[0]
    assert "merge any model" in found[0]


def test_what_runs_nothing_merges_any_model(models: Path) -> None:
    become_encoders(models)
    write_recipe(models)
    assert errors(models, quick=True) == []
    write_recipe(
        models, calibration=write_prompts(models), experts={"selection": "magnitude", "values": "exact", "distill": 0}
    )
    assert errors(models, quick=True) == []


def test_the_weights_must_be_those_of_the_decoder(models: Path) -> None:
    for name in ("base", "one", "two"):
        edit_tensors(models / name, lambda tensors: tensors.update(extra=tensors["model.norm.weight"].clone()))
    write_recipe(models, calibration=write_prompts(models))
    assert [message.partition(";")[0] for message in errors(models, quick=True)] == [
        f"base: {models / 'base'} cannot be run: extra is not a parameter of the model (1 names differ)"
    ]


def test_prompts_need_a_tokenizer(models: Path) -> None:
    for name in ("base", "one", "two"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (models / name / file).unlink()
    write_recipe(models, calibration=write_prompts(models))
    assert any("has no tokenizer that can be read" in message for message in errors(models, quick=True))


def test_a_decoder_with_prompts_is_fine(models: Path) -> None:
    write_recipe(models, calibration=write_prompts(models))
    assert errors(models, quick=True) == []


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def write_lines(folder: Path, *items: dict[str, object]) -> dict[str, str]:
    write_prompts(folder)
    with (folder / "prompts.jsonl").open("a") as file:
        file.writelines(f"\n{json.dumps(item)}" for item in items)
    return {"file": "prompts.jsonl"}


def test_conversations_need_a_chat_template_that_takes_them(models: Path) -> None:
    said = [{"role": "user", "content": "hi"}]
    write_recipe(models, calibration=write_lines(models, {"task": "one", "messages": said}))
    assert errors(models, quick=True) == [
        "calibration: 'hi' is given as messages, but no chat template is used: write it as a prompt"
    ]
    (models / "base" / "chat_template.jinja").write_text(TEMPLATE)
    assert errors(models, quick=True) == []
    said.insert(0, {"role": "tool", "content": "x"})
    write_recipe(models, calibration=write_lines(models, {"task": "one", "messages": said}))
    assert errors(models, quick=True) == ["calibration: the chat template does not take 'hi': no tools"]
    # Only the router reads them, and it reads the user's text.
    write_recipe(models, calibration={"file": "prompts.jsonl"}, experts={"selection": "residual"})
    assert errors(models, quick=True) == []


def test_prompts_that_fill_the_context_are_told(models: Path) -> None:
    write_recipe(models, calibration=write_lines(models, {"task": "two", "prompt": "a" * 64}))
    assert "calibration: 1 of 5 prompts of two fill the context of 64 tokens: left out" in warnings(models, quick=True)


def test_a_large_factor_is_told_before_the_merge(models: Path) -> None:
    write_recipe(models, experts={"rescale": "code"})
    assert any(
        told.startswith("recipe: experts.rescale: code gives a μ of about 5.7") for told in warnings(models, quick=True)
    )
    write_recipe(models)
    assert not any("μ" in told for told in warnings(models, quick=True))


def test_excluded_tensors_of_another_shape_cannot_be_run(models: Path) -> None:
    edit_tensors(models / "two", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(35, 32)}))
    write_recipe(models, calibration=write_prompts(models), exclude=["lm_head.weight"])
    (wrong,) = errors(models, quick=True)
    assert wrong.startswith("models.two: ")
    assert "cannot be run on prompts: lm_head.weight is [35, 32], the base's is [33, 32]" in wrong
