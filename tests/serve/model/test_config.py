import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve.model import ModelConfig, ModelError, read_config
from tests.merge.check.real_configs import CONFIGS, resaved

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def write(directory: Path, **changes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return directory


def test_defaults(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert (config.num_kv_heads, config.head_dim, config.windows) == (2, 4, (None, None))
    assert (config.dtype, config.tied, config.eos_token_ids) == (torch.float32, False, ())


def test_end_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=3)
    assert read_config(tmp_path).eos_token_ids == (3,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert read_config(tmp_path).eos_token_ids == (4, 5)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": []}))
    assert read_config(tmp_path).eos_token_ids == (3,), "an empty list names no token"


@pytest.mark.parametrize("ends", [[[1, 2], 3], [2.0], 2.0, "2", [True], -1, [-1], 10, [3, 10]])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_end_tokens_are_token_ids_that_the_model_has(ends: Any, file: str, tmp_path: Path) -> None:
    write(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) if file == "config.json" else {}
    (tmp_path / file).write_text(json.dumps({**fields, "eos_token_id": ends}))
    with pytest.raises(ModelError, match=f"{file}: eos_token_id"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_spellings_of_real_models_are_read_alike(name: str, tmp_path: Path) -> None:
    four = CONFIGS[name]

    def parsed(config: dict[str, Any]) -> ModelConfig:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return read_config(tmp_path)

    assert parsed(four) == parsed(resaved(four, tmp_path))
    assert parsed(four).layers[0].rope.theta == four.get("rope_theta", 10_000.0)


@pytest.mark.parametrize("said", ["torch.bfloat16", "bfloat16", "auto"])
def test_a_dtype_by_its_other_names(said: str, tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, dtype=torch.bfloat16), "ids": torch.zeros(2, dtype=torch.int64)}
    save_file(tensors, tmp_path / "model.safetensors")
    for key in ("dtype", "torch_dtype"):
        assert read_config(write(tmp_path, **{key: said})).dtype is torch.bfloat16


def test_an_automatic_dtype_needs_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'auto'.*no safetensors file"):
        read_config(write(tmp_path, dtype="auto"))


def test_sliding_windows_by_layer(tmp_path: Path) -> None:
    qwen: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 6}
    assert read_config(write(tmp_path, **qwen)).windows == (None, None)
    used = {**qwen, "use_sliding_window": True}
    assert read_config(write(tmp_path, **used, max_window_layers=1)).windows == (None, 6)
    kinds = ["sliding_attention", "full_attention"]
    assert read_config(write(tmp_path, **used, layer_types=kinds)).windows == (6, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*Llama.*Mistral.*Qwen2.*Qwen3"),
        ({"architectures": None, "model_type": "opt"}, "'opt'.*LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional'.*default, linear, dynamic, llama3, yarn"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2}}, "'longrope' needs 'short_factor'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs a 'factor'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"max_position_embeddings": None}, "max_position_embeddings is null"),
        ({"max_position_embeddings": None, "rope_scaling": {"type": "linear", "factor": 2}}, "embeddings is null"),
        ({"rms_norm_eps": None}, "rms_norm_eps is null"),
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta is null"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "wrong type.*two"),
        ({"hidden_size": "8"}, "hidden_size is '8'; it must be a positive whole number"),
        ({"vocab_size": 3.5}, "vocab_size is 3.5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4}}},
            r"by kind of layer \(full_attention, sliding_attention\)",
        ),
        ({"dtype": "float8"}, "'float8'"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "not a multiple"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types names 1 layers",
        ),
    ],
)
def test_what_is_not_implemented_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_config(write(tmp_path, **changes))


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match="config.json cannot be read: Is a directory"):
        read_config(tmp_path)
    (tmp_path / "config.json").rmdir()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match="lacks"):
        read_config(tmp_path)
