import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.model import Decoder, ModelError, load_model, weights
from tests.serve.conftest import random_model
from tests.users import another_user, open_to_all


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    random_model(num_hidden_layers=1).save_pretrained(tmp_path)
    return tmp_path


def rewrite(directory: Path, drop: str = "", **changes: torch.Tensor) -> None:
    file = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != drop}
    save_file({**tensors, **changes}, file, metadata={"format": "pt"})


def test_dtype_is_the_checkpoints_unless_given(directory: Path) -> None:
    assert load_model(directory).dtype == torch.float32
    decoder = load_model(directory, torch.bfloat16)
    assert decoder.layers[0].qkv.weight.dtype == torch.bfloat16


def test_a_missing_tensor_is_named(directory: Path) -> None:
    rewrite(directory, drop="model.layers.0.self_attn.k_proj.weight")
    with pytest.raises(ModelError, match=r"lacks the tensor 'model.layers.0.self_attn.k_proj.weight'"):
        load_model(directory)


def test_an_unknown_tensor_is_named(directory: Path) -> None:
    rewrite(directory, extra=torch.zeros(3))
    with pytest.raises(ModelError, match="'extra'"):
        load_model(directory)


def test_a_wrong_shape_is_named(directory: Path) -> None:
    rewrite(directory, **{"model.norm.weight": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"model.norm.weight is \[3\]; config.json implies \[48\]"):
        load_model(directory)


def test_no_weights_a_missing_shard_and_a_damaged_file(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(directory)
    file.unlink()
    with pytest.raises(ModelError, match="neither"):
        load_model(directory)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ModelError, match=r"names the shard '../a.safetensors'"):
        load_model(directory)
    index.write_text("[]")
    with pytest.raises(ModelError, match="not a readable index"):
        load_model(directory)


def test_weights_without_permission_are_called_that(directory: Path) -> None:
    (directory / "model.safetensors").chmod(0)
    open_to_all(directory)
    with another_user(), pytest.raises(ModelError, match="PermissionError: Permission denied .*user id"):
        load_model(directory)


def test_weights_are_not_mapped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that truncates the file while it is mapped would end this one with SIGBUS."""
    mapped: list[bool] = []
    is_derived = weights._is_derived

    def look(name: str, decoder: Decoder) -> bool:
        mapped.append(str(directory) in Path("/proc/self/maps").read_text())
        return is_derived(name, decoder)

    monkeypatch.setattr(weights, "_is_derived", look)
    load_model(directory)
    assert mapped
    assert not any(mapped)


def test_a_file_that_is_truncated_while_it_is_read_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_derived = weights._is_derived

    def truncate(name: str, decoder: Decoder) -> bool:
        os.truncate(directory / "model.safetensors", 100)
        return is_derived(name, decoder)

    monkeypatch.setattr(weights, "_is_derived", truncate)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(directory)
