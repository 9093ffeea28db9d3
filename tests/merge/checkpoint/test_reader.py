import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge.bundle.quantised import INT4, packed_tensors, quantise, write_quantisation
from merge.checkpoint import CheckpointError, copy_settings, open_checkpoint, unquantised
from tests.merge.tiny import save_tiny


def directory(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, object] | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config or {}))
    save_file(tensors, path / "model.safetensors")
    return path


def test_single_and_sharded_directories_read_alike(tmp_path: Path) -> None:
    single = open_checkpoint(save_tiny(tmp_path / "single"))
    sharded = open_checkpoint(save_tiny(tmp_path / "sharded", shard="10KB"))
    assert len({info.file for info in sharded.tensors.values()}) > 1
    assert set(single.tensors) == set(sharded.tensors)
    assert all(torch.equal(single.tensor(name), sharded.tensor(name)) for name in single.tensors)
    assert single.nbytes == sharded.nbytes > 0
    assert single.tensor("model.norm.weight", torch.float64).dtype == torch.float64


def test_index_is_checked(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", shard="10KB")
    index = path / "model.safetensors.index.json"
    original = json.loads(index.read_text())
    name, shard = next(iter(original["weight_map"].items()))

    def with_map(changes: dict[str, str | None]) -> None:
        weights = {key: value for key, value in {**original["weight_map"], **changes}.items() if value is not None}
        index.write_text(json.dumps({**original, "weight_map": weights}))

    with_map({name: "../elsewhere.safetensors"})
    with pytest.raises(CheckpointError, match="points outside its directory"):
        open_checkpoint(path)
    with_map({"extra": shard})
    with pytest.raises(CheckpointError, match="extra is in the index but not in the shard"):
        open_checkpoint(path)
    with_map({name: None})
    with pytest.raises(CheckpointError, match="in the shard but not in the index"):
        open_checkpoint(path)
    with_map({name: "model-00099-of-00099.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-00099-of-00099\.safetensors .* is missing"):
        open_checkpoint(path)
    with_map({})
    save_file({"stale": torch.zeros(1)}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="remove the one that is stale"):
        open_checkpoint(path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        open_checkpoint(tmp_path)


def test_missing_or_broken_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory at"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    with pytest.raises(CheckpointError, match="unquantised"):
        open_checkpoint(tmp_path)


def test_quantised_weights_are_multiplied_out(tmp_path: Path) -> None:
    weight = quantise(torch.randn(6, 40, generator=torch.Generator().manual_seed(0)), INT4)
    tensors = {**packed_tensors("a.weight", weight), "norm.weight": torch.ones(3)}
    path = directory(tmp_path / "m", tensors)
    (path / "config.json").write_text(json.dumps(write_quantisation({}, "int4")))
    checkpoint = open_checkpoint(path)
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a.weight": (6, 40), "norm.weight": (3,)}
    assert torch.equal(checkpoint.tensor("a.weight"), weight.dequantised())
    assert torch.equal(checkpoint.tensor("a.weight", torch.bfloat16), weight.dequantised(torch.bfloat16))
    assert checkpoint.nbytes == 6 * 40 * 2 + 3 * 4
    with pytest.raises(CheckpointError, match="merging needs the unquantised weights"):
        unquantised(checkpoint)
    damaged = {**tensors, "a.weight_scale": tensors["a.weight_scale"] * float("nan")}
    lacking = {name: tensor for name, tensor in tensors.items() if name != "a.weight_scale"}
    for name, others in (("damaged", damaged), ("lacking", lacking)):
        (directory(tmp_path / name, others) / "config.json").write_text(json.dumps(write_quantisation({}, "int4")))
    with pytest.raises(CheckpointError, match=r"a\.weight_scale: 12 of 12 scales are not finite and positive"):
        open_checkpoint(tmp_path / "damaged").tensor("a.weight")
    with pytest.raises(CheckpointError, match=r"a\.weight_scale is missing"):
        open_checkpoint(tmp_path / "lacking")


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path = directory(tmp_path / "m", {"good": torch.ones(3), "bad": torch.tensor([1.0, float("nan"), float("inf")])})
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.tensor("good"), torch.ones(3))
    with pytest.raises(CheckpointError, match="bad holds 2 NaN or infinite values of 3"):
        checkpoint.tensor("bad")
    with pytest.raises(CheckpointError, match="no tensor missing"):
        checkpoint.tensor("missing")


def test_tied_head_is_dropped_only_where_it_equals_the_embedding(tmp_path: Path) -> None:
    embedding = torch.randn(4, 3)
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    tied = open_checkpoint(directory(tmp_path / "tied", tensors, {"tie_word_embeddings": True}))
    assert set(tied.tensors) == {"model.embed_tokens.weight"}
    untied = open_checkpoint(directory(tmp_path / "untied", tensors, {"tie_word_embeddings": False}))
    assert set(untied.tensors) == set(tensors)
    tensors["lm_head.weight"] = embedding + 1
    with pytest.raises(CheckpointError, match="ties the word embeddings"):
        open_checkpoint(directory(tmp_path / "differs", tensors, {"tie_word_embeddings": True}))


def test_settings_are_copied_without_weights_or_code(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", shard="10KB")
    (path / "modeling_mine.py").write_text("raise SystemExit\n")
    target = tmp_path / "copy"
    target.mkdir()
    copy_settings(path, target)
    names = {file.name for file in target.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".safetensors", ".py", ".index.json")) for name in names)
