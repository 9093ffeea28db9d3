import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from merge.checkpoint import CheckpointError, CheckpointWriter, TensorSpec, copy_settings, open_checkpoint
from tests.merge.tiny import save_tiny


def specs_of(tensors: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def write(directory: Path, tensors: dict[str, torch.Tensor], shard_bytes: int) -> None:
    with CheckpointWriter(directory, specs_of(tensors), shard_bytes) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])


TENSORS = {
    "b": torch.randn(4, 4),
    "a": torch.randn(3).to(torch.bfloat16),
    "c": torch.randn(5, 1).to(torch.float16),
    "d": torch.tensor(2.5),
}


@pytest.mark.parametrize(("shard_bytes", "shards"), [(10_000, 1), (64, 3), (1, 4)])
def test_bytes_survive_whatever_the_shard_size(tmp_path: Path, shard_bytes: int, shards: int) -> None:
    write(tmp_path, TENSORS, shard_bytes)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    read = {name: tensor for file in files for name, tensor in load_file(tmp_path / file).items()}
    assert set(read) == set(TENSORS)
    assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in read)
    assert len(files) == shards
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (shards > 1)
    if shards > 1:
        assert json.loads(index.read_text())["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    (tmp_path / "config.json").write_text("{}")
    assert set(open_checkpoint(tmp_path).tensors) == set(TENSORS)


def test_transformers_reads_the_directory(tmp_path: Path) -> None:
    source = open_checkpoint(save_tiny(tmp_path / "model", tied=False))
    target = tmp_path / "copy"
    target.mkdir()
    copy_settings(source.path, target)
    write(target, {name: source.tensor(name) for name in source.tensors}, 10_000)
    ours, theirs = (LlamaForCausalLM.from_pretrained(path).state_dict() for path in (target, source.path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(stop: type[BaseException] | None) -> None:
        with CheckpointWriter(tmp_path, specs_of(TENSORS), 64) as writer:
            for name in writer.order[:-1]:
                writer.write(name, TENSORS[name])
            if stop is not None:
                raise stop

    with pytest.raises(KeyboardInterrupt):
        interrupted(KeyboardInterrupt)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="incomplete: "):
        interrupted(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("w", torch.tensor([1.0, 1e6]))], r"w: 1 of 2 merged values are NaN or infinite in torch\.float16"),
        ([("w", torch.zeros(3))], r"expected w \[2\] next, not w \[3\]"),
        ([("w", torch.zeros(2)), ("v", torch.zeros(2))], "v was not planned"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, steps: list[tuple[str, torch.Tensor]], message: str) -> None:
    def run() -> None:
        with CheckpointWriter(tmp_path, [TensorSpec("w", torch.float16, (2,))]) as writer:
            for name, tensor in steps:
                writer.write(name, tensor)

    with pytest.raises(CheckpointError, match=message):
        run()


def test_wrong_plans_are_named(tmp_path: Path) -> None:
    spec = TensorSpec("w", torch.float16, (2,))
    with pytest.raises(CheckpointError, match=r"torch\.int8 cannot be stored"):
        CheckpointWriter(tmp_path, [TensorSpec("w", torch.int8, (2,))])
    with pytest.raises(CheckpointError, match="one tensor name twice"):
        CheckpointWriter(tmp_path, [spec, spec])
    with pytest.raises(CheckpointError, match="needs tensors"):
        CheckpointWriter(tmp_path, [])
