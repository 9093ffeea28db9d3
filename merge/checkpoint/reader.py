"""Opening a Hugging Face model directory: every header checked at once, tensors read one at a time."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from merge.checkpoint.error import CheckpointError
from merge.checkpoint.header import TensorInfo, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Checkpoint:
    """An opened model directory.

    Attributes:
        path: the directory.
        config: config.json.
        tensors: what the headers say, by name; a tied output head is left out.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def label(self) -> str:
        """How messages and progress lines call the model."""
        return self.path.name

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor (memory-mapped; nothing else is loaded).

        Args:
            name: a key of `tensors`.
            dtype: cast to it.

        Raises:
            CheckpointError: no such tensor, or values that are not finite.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        with safe_open(info.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise CheckpointError(f"{info.file}: {name} holds {bad} NaN or infinite values of {tensor.numel()}")
        return tensor if dtype is None else tensor.to(dtype)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model directory and validate everything but the values.

    Raises:
        CheckpointError: no such directory or config.json, pickled weights only, quantised weights, a shard that is
            missing or does not match the index, a damaged header, a tied head that differs from the embedding.
    """
    if not path.is_dir():
        raise CheckpointError(f"no model directory at {path}")
    config = read_json(path / "config.json")
    if config.get("quantization_config") is not None:
        raise CheckpointError(f"{path}: config.json has a quantization_config; merging needs the unquantised weights")
    tensors = _tensors(path)
    if not tensors:
        raise CheckpointError(f"{path}: the safetensors files hold no tensor")
    checkpoint = Checkpoint(path, config, tensors)
    return _untied(checkpoint) if config.get("tie_word_embeddings") else checkpoint


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: no such file, or no JSON object in it.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: a Hugging Face model directory is needed") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def copy_settings(source: Path, target: Path) -> None:
    """Copy what is not weights (config, tokenizer, chat template) from one model directory to another.

    Only top-level .json, .txt, .model, .jinja and .tiktoken files are taken: never code, never weights.
    """
    for file in sorted(source.iterdir()):
        wanted = file.suffix in {".json", ".txt", ".model", ".jinja", ".tiktoken"}
        if file.is_file() and wanted and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def _tensors(path: Path) -> dict[str, TensorInfo]:
    single, index = path / SINGLE, path / INDEX
    if single.is_file() and index.is_file() and set(_weight_map(index).values()) != {SINGLE}:
        raise CheckpointError(f"{path} has both {SINGLE} and {INDEX}: remove the one that is stale")
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _sharded(path, index)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise CheckpointError(
            f"{path} has pickled weights only, which can run code when opened: convert them where you trust them, with "
            "transformers' from_pretrained(...).save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}")


def _weight_map(index: Path) -> dict[str, str]:
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor to shard")
    return weights


def _sharded(path: Path, index: Path) -> dict[str, TensorInfo]:
    weights = _weight_map(index)
    shards = sorted(set(weights.values()))
    for shard in shards:
        if Path(shard).name != shard or shard in {"", ".", ".."}:
            raise CheckpointError(f"{index} points outside its directory: {shard!r}; a shard is a bare file name")
        if not (path / shard).is_file():
            raise CheckpointError(f"{path}: the shard {shard} that {INDEX} names is missing")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        header = read_header(path / shard)
        listed = {name for name, place in weights.items() if place == shard}
        for name in sorted(listed ^ set(header)):
            where = "the index but not in the shard" if name in listed else "the shard but not in the index"
            raise CheckpointError(f"{path / shard}: {name} is in {where}")
        tensors.update(header)
    return tensors


def _untied(checkpoint: Checkpoint) -> Checkpoint:
    """Drop a stored copy of a tied output head, which must equal the embedding."""
    tensors = dict(checkpoint.tensors)
    if HEAD not in tensors or EMBEDDING not in tensors:
        return checkpoint
    if not torch.equal(checkpoint.tensor(HEAD), checkpoint.tensor(EMBEDDING)):
        raise CheckpointError(
            f"{checkpoint.path}: config.json ties the word embeddings, but {HEAD} differs from {EMBEDDING}; "
            "either set tie_word_embeddings to false or remove the head"
        )
    del tensors[HEAD]
    return Checkpoint(checkpoint.path, checkpoint.config, tensors)
