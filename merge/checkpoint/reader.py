"""Opening a Hugging Face model directory: every header checked at once, tensors read one at a time."""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merge.bundle.quantised import (
    PARTS,
    SCALE,
    SHAPE,
    QuantisationError,
    Scheme,
    read_quantisation,
    read_weight,
    stored_parts,
)
from merge.bundle.shards import SINGLE
from merge.checkpoint.error import CheckpointError, Faults
from merge.checkpoint.finite import count_not_finite
from merge.checkpoint.header import TensorInfo, read_header
from merge.device import CPU

TIED = {
    "lm_head.weight": ("model.embed_tokens.weight", "shared.weight", "transformer.wte.weight"),
    "encoder.embed_tokens.weight": ("shared.weight",),
    "decoder.embed_tokens.weight": ("shared.weight",),
    "model.encoder.embed_tokens.weight": ("model.shared.weight",),
    "model.decoder.embed_tokens.weight": ("model.shared.weight",),
    "cls.predictions.decoder.weight": ("bert.embeddings.word_embeddings.weight",),
    "cls.predictions.decoder.bias": ("cls.predictions.bias",),
    "lm_head.decoder.weight": ("roberta.embeddings.word_embeddings.weight",),
    "lm_head.decoder.bias": ("lm_head.bias",),
}
"""Tensors that models with tied embeddings share, by the name of the second copy."""


@dataclass(frozen=True)
class Quantised:
    """Where the parts of a quantised weight are.

    Attributes:
        files: by the names of its tensors.
        schemes: of which it has one.
    """

    files: Mapping[str, Path]
    schemes: frozenset[Scheme]

    def dequantised(self, name: str, dtype: torch.dtype) -> Tensor:
        """The weight multiplied out, [N, K].

        Raises:
            CheckpointError: it cannot be read, or is damaged.
        """
        try:
            return read_weight(name, lambda part: _read(self.files[part], part), self.schemes).dequantised(dtype)
        except QuantisationError as error:
            raise CheckpointError(f"{self.files[name + PARTS[0]]}: {error}") from error


def _read(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: {name} cannot be read: {error}") from error
    return tensor


@dataclass(frozen=True)
class Checkpoint:
    """An opened model directory.

    Attributes:
        path: the directory.
        config: config.json.
        tensors: what the headers say of the floating-point tensors, by name; second copies of tied ones are left out.
        buffers: the same of integer and boolean tensors.
        quantised: how each quantised weight among `tensors` is stored: its tensors, and the schemes of config.json.
            Its entry in `tensors` has the dtype of its scales, so that `nbytes` is what it takes multiplied out.
        device: the device of the tensors that `tensor` returns.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    buffers: Mapping[str, TensorInfo] = field(default_factory=dict)
    quantised: Mapping[str, "Quantised"] = field(default_factory=dict)
    device: torch.device = CPU

    @property
    def label(self) -> str:
        """How messages and progress lines call the model."""
        return self.path.name

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where its settings are, the nearest first."""
        return (self.path,)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def usual_dtype(self) -> torch.dtype:
        """The dtype of most bytes."""
        sizes: dict[torch.dtype, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
        return max(sizes, key=lambda dtype: sizes[dtype])

    def tensor(
        self, name: str, dtype: torch.dtype | None = None, check: bool = True, rows: slice | None = None
    ) -> Tensor:
        """Read one tensor (memory-mapped; nothing else is loaded).

        Args:
            name: a key of `tensors`.
            dtype: cast to it. None: as stored; float32 for a quantised weight, which is multiplied out.
            check: look for values that are not finite.
            rows: read only these, of the first dimension; None: all.

        Raises:
            CheckpointError: no such tensor, a file that cannot be read, or values that are not finite.
        """
        info = self.tensors.get(name) or self.buffers.get(name)
        if info is None:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        if name in self.quantised:
            weight = self.quantised[name].dequantised(name, dtype or torch.float32).to(self.device)
            return weight if rows is None else weight[rows]
        tensor = _read(info.file, name)
        if rows is not None:
            tensor = tensor[rows]
        tensor = tensor.to(self.device)
        bad = count_not_finite(tensor) if check else 0
        if bad:
            raise CheckpointError(f"{info.file}: {name} holds {bad} NaN or infinite values of {tensor.numel()}")
        return tensor if dtype is None else tensor.to(dtype)

    def is_mapped(self, name: str) -> bool:
        """Whether `tensor`, asked for no other dtype, maps the file and copies nothing."""
        return name not in self.quantised and self.device.type == "cpu"

    def on(self, device: torch.device) -> Self:
        """The same checkpoint, whose tensors are read to a device."""
        return replace(self, device=device)

    def only(self, names: Collection[str]) -> Self:
        """The same checkpoint with these tensors and no others."""
        return replace(self, tensors={name: info for name, info in self.tensors.items() if name in names}, buffers={})


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model directory and validate everything but the values.

    Raises:
        CheckpointError: no such directory or config.json, pickled weights only, quantised weights, shards that are
            missing or do not match the index, damaged headers, a tied head that differs from the embedding. All that
            can be told at once is.
    """
    if not path.is_dir():
        raise CheckpointError(f"no model directory at {path}{_hub_hint(path)}")
    faults = Faults()
    config: dict[str, Any] = {}
    with faults.gathered():
        config = read_json(path / "config.json")
    schemes: frozenset[Scheme] = frozenset()
    try:
        schemes = read_quantisation(config)
    except QuantisationError as error:
        faults.found.append(f"{path}: {error}")
    headers: dict[str, TensorInfo] = {}
    with faults.gathered():
        headers = read_headers(path, packed=config.get("quantization_config") is not None)
        if not headers:
            faults.found.append(f"{path}: the safetensors files hold no tensor")
    faults.settle()
    quantised = _quantised(path, headers, schemes)
    parts = {name + part for name in quantised for part in PARTS}
    weights = {name: _multiplied_out(name, headers) for name in quantised}
    plain = {name: info for name, info in headers.items() if name not in parts}
    tensors = {name: info for name, info in plain.items() if info.dtype.is_floating_point} | weights
    buffers = {name: info for name, info in plain.items() if name not in tensors}
    return _untied(Checkpoint(path, config, tensors, buffers, quantised))


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix == ".gguf" and not path.is_dir()


def unquantised(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, which is to be merged.

    Raises:
        CheckpointError: its weights are quantised.
    """
    if checkpoint.quantised:
        raise CheckpointError(
            f"{checkpoint.path}: config.json has a quantization_config; merging needs the unquantised weights"
        )
    return checkpoint


def _quantised(path: Path, headers: Mapping[str, TensorInfo], schemes: frozenset[Scheme]) -> dict[str, Quantised]:
    if not schemes:
        return {}
    try:
        names = sorted(stored_parts(headers.keys()))
    except QuantisationError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return {name: Quantised({name + part: headers[name + part].file for part in PARTS}, schemes) for name in names}


def _multiplied_out(name: str, headers: Mapping[str, TensorInfo]) -> TensorInfo:
    info = headers[name + SHAPE]
    shape = tuple(int(size) for size in _read(info.file, info.name).flatten())
    return TensorInfo(name, headers[name + SCALE].dtype, shape, headers[name + PARTS[0]].file)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: no such file, or no JSON object in it.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: a Hugging Face model directory is needed") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def copy_settings(source: Path, target: Path) -> None:
    """Copy what is not weights (config, tokenizer, chat template) from one model directory to another.

    Only the files of `setting_files` are taken: never code, never weights.
    """
    for file in setting_files(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def setting_files(directory: Path) -> list[Path]:
    """Files of a model directory that are neither weights nor code, sorted: .json, .txt, .model, .jinja, .tiktoken.

    Of the directories in it, additional_chat_templates is looked into.
    """
    suffixes = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
    return [
        file
        for file in sorted([*directory.iterdir(), *directory.glob("additional_chat_templates/*.jinja")])
        if file.is_file() and file.suffix in suffixes and not file.name.endswith(".index.json")
    ]


def read_headers(path: Path, stem: str = SINGLE, packed: bool = False) -> dict[str, TensorInfo]:
    """Read the headers of a directory's weights, in one file or in the shards that an index names.

    Args:
        path: the directory.
        stem: the file's name; its index is called `stem`.index.json.
        packed: whether integers may hold quantised weights.

    Raises:
        CheckpointError: every fault found.
    """
    single, index = path / stem, path / f"{stem}.index.json"
    if single.is_file() and index.is_file() and set(_weight_map(index).values()) != {stem}:
        raise CheckpointError(f"{path} has both {single.name} and {index.name}: remove the one that is stale")
    if single.is_file():
        return read_header(single, packed)
    if index.is_file():
        return _sharded(path, index, packed)
    raise CheckpointError(_other_weights(path, stem))


def _other_weights(path: Path, stem: str) -> str:
    """Say that the expected weights are missing, and which files are there instead."""
    if any(file for suffix in ("bin", "pt", "pth", "ckpt", "pkl") for file in path.glob(f"*.{suffix}")):
        how = (
            "transformers' from_pretrained(...).save_pretrained(..., safe_serialization=True)"
            if stem == SINGLE
            else "PeftModel.from_pretrained(base, ...).save_pretrained(...), which writes safetensors"
        )
        return (
            f"{path} has pickled weights only, which can run code when opened: if you trust them, convert them with "
            f"{how}"
        )
    text = f"{path} has neither {stem} nor {stem}.index.json"
    if any(path.glob("*.gguf")):
        return f"{text}, but GGUF files: name one of them, with `.gguf`"
    if any(path.glob("consolidated*.safetensors")):
        return f"{text}, but Mistral's own consolidated files: give the checkpoint in the Hugging Face format"
    return text


def _weight_map(index: Path) -> dict[str, str]:
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to shards")
    return weights


def _sharded(path: Path, index: Path, packed: bool) -> dict[str, TensorInfo]:
    weights = _weight_map(index)
    faults = Faults()
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weights.values())):
        if Path(shard).name != shard or shard in {"", ".", ".."}:
            faults.found.append(f"{index} points outside its directory: {shard!r}; a shard is a bare file name")
        elif not (path / shard).is_file():
            faults.found.append(f"{path}: the shard {shard} that {index.name} names is missing")
        else:
            with faults.gathered():
                tensors.update(
                    _shard(path / shard, {name for name, place in weights.items() if place == shard}, packed)
                )
    faults.settle()
    return tensors


def _shard(file: Path, listed: set[str], packed: bool) -> dict[str, TensorInfo]:
    header = read_header(file, packed)
    faults = Faults()
    for name in sorted(listed ^ set(header)):
        where = "the index but not in the shard" if name in listed else "the shard but not in the index"
        faults.found.append(f"{file}: {name} is in {where}")
    faults.settle()
    return header


def _untied(checkpoint: Checkpoint) -> Checkpoint:
    """Drop second copies of tied tensors, which must equal the first.

    transformers ties the head if config.json has no such key, so without the key the weights themselves decide.
    """
    tie = checkpoint.config.get("tie_word_embeddings")
    if tie is False:
        return checkpoint
    tensors, faults = dict(checkpoint.tensors), Faults()
    for copy, originals in TIED.items():
        original = next((name for name in originals if name in tensors), None)
        if copy not in tensors or original is None:
            continue
        if _equal(checkpoint, copy, original):
            del tensors[copy]
        elif tie:
            faults.found.append(
                f"{checkpoint.path}: config.json ties the word embeddings, but {copy} differs from {original}: if the "
                "head was trained, set tie_word_embeddings to false here, and untie the base and the other fine-tunes "
                f"(the same, with a copy of the embedding saved as {copy}); else remove {copy}"
            )
    faults.settle()
    return replace(checkpoint, tensors=tensors)


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    if checkpoint.tensors[one].shape != checkpoint.tensors[other].shape:
        return False
    return torch.equal(checkpoint.tensor(one), checkpoint.tensor(other))


def _hub_hint(path: Path) -> str:
    if path.is_file():
        return ": that is a file; name the directory that holds it"
    if "@" in path.name:
        return ": revisions are not supported; download the one you mean and name its directory"
    if not path.parent.exists():
        return ": nothing is downloaded; if it is a model of the Hub, fetch it (`hf download`) and name its directory"
    return ""
