import json

import pytest
import torch
from safetensors import safe_open

from benchmarks.zoo.real.paths import adapters_dir
from benchmarks.zoo.real.tasks import TASKS
from benchmarks.zoo.real.training import ALPHA, RANK

MEGABYTE = 10**6


def test_every_task_has_an_adapter_and_together_they_are_small():
    assert sorted(path.name for path in adapters_dir().iterdir()) == sorted(task.name for task in TASKS)
    assert sum(path.stat().st_size for path in adapters_dir().rglob("*")) <= 40 * MEGABYTE


@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_an_adapter_is_a_lora_on_every_linear_layer(name: str):
    config = json.loads((adapters_dir() / name / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (RANK, ALPHA, "LORA")
    assert config["base_model_name_or_path"] == "SmolLM2-135M-Instruct"
    with safe_open(adapters_dir() / name / "adapter_model.safetensors", "pt") as file:
        assert len(file.keys()) == 30 * 7 * 2
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            factor = file.get_tensor(key)
            assert factor.dtype == torch.bfloat16
            assert RANK in factor.shape
            assert factor.isfinite().all()
            assert factor.any()
