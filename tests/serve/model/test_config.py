import json
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.model import ModelError, read_config

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
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope'.*default, linear, llama3, yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs a 'factor'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
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
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match="lacks"):
        read_config(tmp_path)
