import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge.bundle import BundleError, model_shards, open_shard
from merge.bundle.shards import INDEX, SINGLE


def index(directory: Path, *names: str) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {f"t{at}": name for at, name in enumerate(names)}}))


def test_the_only_file(tmp_path: Path):
    (tmp_path / SINGLE).touch()
    assert model_shards(tmp_path) == [tmp_path / SINGLE]


def test_an_index_is_followed(tmp_path: Path):
    for name in (SINGLE, "a.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    index(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")
    assert model_shards(tmp_path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


@pytest.mark.parametrize("name", ["missing.safetensors", "../a.safetensors"])
def test_a_file_that_is_not_in_the_directory_is_named(tmp_path: Path, name: str):
    index(tmp_path, name)
    with pytest.raises(BundleError, match=f"names the shard '{name}'"):
        model_shards(tmp_path)


def test_what_has_no_weights(tmp_path: Path):
    with pytest.raises(BundleError, match="holds neither model.safetensors nor"):
        model_shards(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(BundleError, match="is not a readable index"):
        model_shards(tmp_path)


def test_a_file_is_opened_or_named(tmp_path: Path):
    save_file({"x": torch.ones(2)}, tmp_path / SINGLE)
    with open_shard(tmp_path / SINGLE) as shard:
        assert shard.get_tensor("x").tolist() == [1, 1]
    (tmp_path / SINGLE).write_bytes(b"no")
    with pytest.raises(BundleError, match="is not a readable safetensors file"), open_shard(tmp_path / SINGLE):
        pass
    with pytest.raises(BundleError, match="no file at"), open_shard(tmp_path / "other.safetensors"):
        pass
