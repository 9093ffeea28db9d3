"""Writing the model of a GGUF file as a Hugging Face directory."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from merge.checkpoint import CheckpointError, CheckpointWriter, TensorSpec
from merge.gguf.families import Family, Routed, config_of, family_of
from merge.gguf.metadata import Metadata, read_metadata
from merge.gguf.tokenizer import write_tokenizer

HEADROOM = 64 << 20
"""Bytes of disk beside the weights."""


def as_directory(file: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The Hugging Face directory of a GGUF file's model, converted on the first call and kept in the cache.

    Weights are dequantised, quantised ones to bfloat16. The cache is `gguf` in `$OVERTONE_CACHE_DIR`, else in
    `$XDG_CACHE_HOME/overtone`, else in `~/.cache/overtone`. A file that is changed is converted again.

    Args:
        file: the file.
        say: called with a line if the file has to be converted.

    Raises:
        CheckpointError: it cannot be read, is one part of several, or has an architecture, settings or tensors that are
            not supported; or the cache cannot be written.
    """
    if not file.is_file():
        raise CheckpointError(f"no GGUF file at {file}")
    status = file.stat()
    key = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    folder = cache_dir() / hashlib.sha256(key.encode()).hexdigest()[:16]
    target = folder / file.stem
    if (target / "config.json").is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / file.stem
            made.mkdir()
            say(f"{file}: converting to {target}")
            convert(file, made)
            if not target.exists():
                made.rename(target)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
    return target


def convert(file: Path, directory: Path) -> None:
    """Write a GGUF file's model as a Hugging Face directory.

    Args:
        file: the file.
        directory: an existing, empty directory.

    Raises:
        CheckpointError: as for `as_directory`, or the disk has too little room.
        OSError: the directory cannot be written.
    """
    metadata = read_metadata(file)
    config = config_of(metadata) | {"torch_dtype": str(metadata.dtype).removeprefix("torch.")}
    _check_room(directory, metadata)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _write_weights(metadata, directory)
    write_tokenizer(metadata, directory)


def cache_dir() -> Path:
    """Where converted files are kept."""
    own, shared = os.environ.get("OVERTONE_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own) / "gguf"
    return (Path(shared) if shared else Path.home() / ".cache") / "overtone" / "gguf"


def _check_room(folder: Path, metadata: Metadata) -> None:
    needed = sum(prod(metadata.shape(name)) for name in metadata.tensors) * metadata.dtype.itemsize + HEADROOM
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free; {metadata.file} takes {needed / 1e9:.1f} GB dequantised: free "
            "some, or set OVERTONE_CACHE_DIR"
        )


@dataclass(frozen=True)
class _Source:
    """Where a tensor of the checkpoint comes from.

    Attributes:
        tensor: llama.cpp's name.
        shape: of the checkpoint's tensor.
        index: in a stack of matrices; None: it is the whole tensor.
    """

    tensor: str
    shape: tuple[int, ...]
    index: int | None = None


def _write_weights(metadata: Metadata, target: Path) -> None:
    model, family = _on_meta(target), family_of(metadata)
    sources = _sources(metadata, model, family)
    for name, source in sources.items():
        found = metadata.shape(source.tensor)[0 if source.index is None else 1 :]
        if found != source.shape:
            raise CheckpointError(
                f"{metadata.file}: {source.tensor} is {list(found)}; {list(source.shape)} is expected for {name}"
            )
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    specs = [TensorSpec(name, metadata.dtype, source.shape) for name, source in sources.items()]
    with CheckpointWriter(target, specs, flush=False) as writer:
        for name in writer.order:
            source = sources[name]
            offset = family.norm_offset if len(source.shape) == 1 else 0.0
            tensor = metadata.tensor(source.tensor, torch.float32 if offset else metadata.dtype, source.index)
            count = heads.get(name.split(".")[-2])
            writer.write(name, unpermuted(tensor, count) if family.permuted and count else tensor - offset)


def unpermuted(rows: Tensor, heads: int) -> Tensor:
    """Query or key rows in Hugging Face's order.

    Semantics: within a head row 2i becomes row i, and row 2i + 1 row d / 2 + i: llama.cpp rotates neighbours, Hugging
    Face the two halves of a head.

    Args:
        rows: [heads · d, K], or a bias [heads · d].
        heads: how many.
    """
    width = len(rows) // heads
    return rows.view(heads, width // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _on_meta(directory: Path) -> PreTrainedModel:
    build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            return build(AutoConfig.from_pretrained(directory, local_files_only=True), trust_remote_code=False)
    except (ValueError, TypeError, KeyError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{directory.name} describes no model that transformers can build: {line}") from error


def _sources(metadata: Metadata, model: PreTrainedModel, family: Family) -> dict[str, _Source]:
    """Where each tensor of the checkpoint comes from.

    Raises:
        CheckpointError: a parameter that the file lacks, or a tensor that no parameter is made from.
    """
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == metadata.architecture)
    known = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    found = {}
    for parameter, tensor in model.named_parameters():
        for name, shape, index in _stored(parameter, tuple(tensor.shape), family.routed):
            module = name if index is None else name.replace(f".experts.{index}.", ".experts.")
            stem, _, suffix = module.rpartition(".")
            found[name] = _Source(f"{known.get_name(stem)}.{suffix}", shape, index)
    wanted = {source.tensor for source in found.values()}
    lacking = sorted(wanted - set(metadata.tensors))
    surplus = sorted(set(metadata.tensors) - wanted - set(family.tensors))
    if lacking or surplus:
        what = f"lacks {lacking[0]}" if lacking else f"holds {surplus[0]}"
        count = len(lacking) or len(surplus)
        raise CheckpointError(
            f"{metadata.file} {what}, as no {type(model).__name__} does ({count} such names): give the Hugging Face "
            "checkpoint"
        )
    return found


def _stored(
    parameter: str, shape: tuple[int, ...], routed: Routed | None
) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
    """Name, shape and number of the MLP of the checkpoint's tensors that are one parameter of a transformers model.

    transformers stacks the matrices of a routed feed-forward, and gates with what they gate: [MLPs, 2 I, H].
    """
    layer, _, rest = parameter.partition(".mlp.")
    if routed is None or rest not in {"experts.gate_up_proj", "experts.down_proj", "gate.weight"}:
        yield parameter, shape, None
        return
    module = f"{layer}.{routed.module}"
    if rest == "gate.weight":
        yield f"{module}.gate.weight", shape, None
        return
    both = rest == "experts.gate_up_proj"
    for number in range(shape[0]):
        for matrix in (routed.gate, routed.up) if both else (routed.down,):
            rows = shape[1] // 2 if both else shape[1]
            yield f"{module}.experts.{number}.{matrix}.weight", (rows, shape[2]), number
