from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.zoo.real import training
from benchmarks.zoo.real.measure import accuracy, load
from benchmarks.zoo.real.training import Form, Schedule, fine_tune
from serve.demo.tiny import models_dir
from serve.demo.zoo.real.tasks import find_task

BASE = models_dir() / "base"
WEATHER = find_task("weather")
SCHEDULE = Schedule(steps=6, batch_size=4, learning_rate=1e-3)


class StoppedError(Exception):
    pass


def _train(form: Form, out: Path, stop_after: int | None = None) -> list[float]:
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step == stop_after:
            raise StoppedError

    fine_tune(BASE, WEATHER, form, SCHEDULE, 0, out, on_step)
    return losses


@pytest.mark.parametrize("form", ["lora", "full"])
def test_an_interrupted_run_goes_on_to_the_same_weights(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "_STEPS_BETWEEN_SAVES", 2)
    assert len(_train(form, tmp_path / "whole")) == SCHEDULE.steps
    with pytest.raises(StoppedError):
        _train(form, tmp_path / "halves", stop_after=3)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["whole"]
    assert len(_train(form, tmp_path / "halves")) == SCHEDULE.steps - 2
    whole, halves = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert {tensor.dtype for tensor in whole.values()} == {torch.bfloat16}
    assert not list(tmp_path.glob(".*.state"))


def test_a_fine_tune_that_is_there_is_left_alone(tmp_path: Path):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "adapter_config.json").write_text("{}")
    assert _train("lora", tmp_path / "done") == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads it
def test_a_lora_is_a_peft_directory_on_every_linear_layer(tmp_path: Path):
    losses = _train("lora", tmp_path / "lora")
    assert losses[-1] < losses[0]
    beneath = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    peft = PeftModel.from_pretrained(beneath, tmp_path / "lora")
    pairs = [name for name, _ in peft.named_parameters() if "lora_A" in name]
    assert len(pairs) == 4 * 7
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        logits = load(BASE, tmp_path / "lora").model(input_ids=ids).logits
        torch.testing.assert_close(logits, peft(input_ids=ids).logits, rtol=1e-3, atol=1e-3)


def test_a_full_fine_tune_leaves_the_embeddings_as_they_were(tmp_path: Path):
    _train("full", tmp_path / "full")
    tuned, base = load(BASE, tmp_path / "full"), load(BASE)
    assert torch.equal(tuned.model.get_input_embeddings().weight, base.model.get_input_embeddings().weight)
    assert not torch.equal(
        tuned.model.get_parameter("model.layers.0.mlp.up_proj.weight"),
        base.model.get_parameter("model.layers.0.mlp.up_proj.weight"),
    )
    assert 0.0 <= accuracy(tuned, WEATHER, WEATHER.examples("test", 2)) <= 1.0


def test_a_round_of_batches_shows_every_content_once():
    size = len(find_task("sql").contents("train"))
    schedule = Schedule(steps=1000, batch_size=size // 4, learning_rate=1e-3)
    seen = [example for step in range(4) for example in schedule.batch(find_task("sql"), 0, step)]
    assert sorted(seen, key=repr) == sorted(find_task("sql").examples("train", 4 * (size // 4), seed=0), key=repr)
