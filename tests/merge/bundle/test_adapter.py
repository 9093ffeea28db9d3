"""LoRA directories read as experts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from merge.bundle import AdapterError, BundleError, MissingFileError, adapter, read_adapter, read_adapter_ranks
from merge.bundle.tensor_file import TensorFile
from tests.merge.lora.adapters import PREFIX, Q, factors, write_adapter

V = "model.layers.1.self_attn.v_proj"
EMBED = "model.embed_tokens"


def refused(directory: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_adapter(directory, "sql", "digest")
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_are_taken_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in {**factors(Q, 8, 6), **factors(V, 4, 6)}.items()}
    digest, expert = read_adapter(write_adapter(tmp_path / "a", tensors), "sql", "digest")
    assert (expert.name, expert.backbone_digest, len(digest)) == ("sql", "digest", 64)
    assert set(expert.low_rank) == {f"{Q}.weight", f"{V}.weight"}
    assert not expert.sparse
    assert not expert.dense
    delta = expert.low_rank[f"{Q}.weight"]
    assert (delta.a.dtype, delta.b.dtype) == (dtype, dtype)
    assert torch.equal(delta.a, tensors[f"{Q}.lora_A.weight"])
    assert torch.equal(delta.b, tensors[f"{Q}.lora_B.weight"])
    assert delta.scale.tolist() == [1.5] * 4
    assert expert.metadata == {"base_model_name_or_path": "somewhere"}


def test_scales_and_ranks_follow_patterns(tmp_path: Path) -> None:
    tensors = {**factors(Q, 8, 6), **factors(V, 4, 6, rank=2)}
    config: dict[str, Any] = {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    path = write_adapter(tmp_path / "a", tensors, **config)
    low_rank = read_adapter(path, "sql", "digest")[1].low_rank
    torch.testing.assert_close(low_rank[f"{Q}.weight"].scale, torch.full((4,), 6 / math.sqrt(4)))
    torch.testing.assert_close(low_rank[f"{V}.weight"].scale, torch.full((2,), 3 / math.sqrt(2)))
    assert read_adapter_ranks(path) == {f"{Q}.weight": 4, f"{V}.weight": 2}


def test_an_embedding_is_adapted_transposed_and_the_base_beside_it_is_passed_over(tmp_path: Path) -> None:
    a, b = torch.randn(4, 11), torch.randn(6, 4)
    tensors = {
        f"{EMBED}.lora_embedding_A": a,
        f"{EMBED}.lora_embedding_B": b,
        f"{EMBED}.base_layer.weight": torch.randn(11, 6),
    }
    path = write_adapter(tmp_path / "a", tensors)
    delta = read_adapter(path, "sql", "digest")[1].low_rank[f"{EMBED}.weight"]
    torch.testing.assert_close((delta.b * delta.scale) @ delta.a, 1.5 * (b @ a).T)


def test_factors_of_two_dtypes_are_both_the_wider(tmp_path: Path) -> None:
    tensors = factors(Q, 8, 6)
    tensors[f"{Q}.lora_A.weight"] = tensors[f"{Q}.lora_A.weight"].to(torch.bfloat16)
    tensors[f"{Q}.lora_B.weight"] = tensors[f"{Q}.lora_B.weight"].to(torch.float64)
    delta = read_adapter(write_adapter(tmp_path / "a", tensors), "sql", "d")[1].low_rank[f"{Q}.weight"]
    assert (delta.a.dtype, delta.b.dtype) == (torch.float32, torch.float32)


def test_the_digest_is_that_of_both_files(tmp_path: Path) -> None:
    def digest(seed: int, **config: Any) -> str:
        return read_adapter(write_adapter(tmp_path / "a", factors(Q, 8, 6, seed=seed), **config), "sql", "d")[0]

    assert digest(0) == digest(0)
    assert len({digest(0), digest(1), digest(0, lora_alpha=7)}) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA is not low-rank; merge it: `overtone merge"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save has lm_head"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is"),
        ({"init_lora_weights": "pissa"}, "trained against a changed base"),
        ({"r": 3}, "adapter_config.json gives model.layers.0.self_attn.q_proj the rank 3"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert message in refused(write_adapter(tmp_path / "a", factors(Q, 8, 6), **config))


def _bad(tensors: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {**tensors, name: change(tensors[name])}


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
FACTORS = factors(Q, 8, 6)
WHOLE = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: FACTORS[A]}, "has one factor only"),
        (_bad(FACTORS, A, lambda a: a * math.nan), "lora_A.weight holds NaN or infinity"),
        (_bad(FACTORS, B, lambda b: b + math.inf), "lora_B.weight holds NaN or infinity"),
        (_bad(FACTORS, B, lambda b: b[:, :2].contiguous()), "is [8, 2]; adapter_config.json gives"),
        (_bad(FACTORS, A, lambda a: a[..., None]), "only linear layers and embeddings"),
        (_bad(FACTORS, A, lambda a: a.to(torch.int8)), "is torch.int8; factors must be"),
        ({**FACTORS, f"{Q}.lora_magnitude_vector": torch.ones(8)}, "is a magnitude vector of DoRA"),
        ({**FACTORS, f"{EMBED}.weight": WHOLE}, "one of a resized vocabulary does not fit the base"),
        ({**FACTORS, "model.norm.weight": torch.ones(6)}, "replaces a whole tensor; merge it"),
        ({**FACTORS, f"{Q}.lora_mystery.weight": WHOLE}, "is not a factor of a plain LoRA"),
        ({}, "it holds no factors"),
        ({**_bad(FACTORS, A, lambda a: a * math.nan), f"{V}.lora_A.weight": WHOLE}, "(and 1 more like it)"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    assert message in refused(write_adapter(tmp_path / "a", tensors))


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "no adapter directory at" in refused(tmp_path / "a")
    assert "nothing is downloaded" in refused(tmp_path / "owner" / "name")
    (tmp_path / "a").mkdir()
    assert "has no adapter_config.json" in refused(tmp_path / "a")
    write_adapter(tmp_path / "a", factors(Q, 8, 6))
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="has no adapter_model.safetensors"):
        read_adapter_ranks(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"pickle")
    assert "pickled weights can run code when opened" in refused(tmp_path / "a")
    with pytest.raises(AdapterError, match="pickled weights"):
        read_adapter_ranks(tmp_path / "a")
    assert "is a file; a LoRA adapter is a directory" in refused(tmp_path / "a" / "adapter_model.bin")


def test_damaged_files(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", factors(Q, 8, 6))
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "truncated or damaged" in refused(path)
    (path / "adapter_config.json").write_text("{")
    assert "is not valid JSON" in refused(path)
    (path / "adapter_config.json").write_text(json.dumps([1]))
    assert "must hold a JSON object" in refused(path)


def test_factors_twice(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", {})
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in factors(Q, 8, 6).items()}
    again = {name.replace(".weight", ".default.weight"): tensor.clone() for name, tensor in tensors.items()}
    save_file({**tensors, **again}, path / "adapter_model.safetensors")
    assert "are the same factor" in refused(path)


def test_a_config_that_changes_while_the_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_adapter(tmp_path / "a", factors(Q, 8, 6))
    read = adapter.read_tensor_file

    def change(file: Path) -> TensorFile:
        write_adapter(path, factors(Q, 8, 6), lora_alpha=99)
        return read(file)

    monkeypatch.setattr(adapter, "read_tensor_file", change)
    assert "is being written to" in refused(path)
