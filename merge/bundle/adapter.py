"""A LoRA directory as PEFT writes it, read as an expert of the model that it was trained on.

An adapter's factors become low-rank parts unchanged: ΔW = B diag(scale) A with scale = α / r, or α / √r for rsLoRA.
What a low-rank part cannot hold is refused by name; merging takes most of that.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merge.bundle.adapter_config import ADAPTER_CONFIG, AdapterConfig, AdapterError, parse_adapter_config
from merge.bundle.adapter_names import ADAPTER_WEIGHTS, AdapterTensorName
from merge.bundle.errors import BundleError, MissingFileError, UnreadableFileError
from merge.bundle.expert import Expert
from merge.bundle.low_rank import LowRankDelta
from merge.bundle.tensor_file import read_failure, read_tensor_file, unreadable

MERGED = "merge it: `overtone merge RECIPE BUNDLE` takes the adapter as one of the recipe's models"

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_adapter(directory: Path, name: str, backbone_digest: str) -> tuple[str, Expert]:
    """Read and validate a PEFT LoRA directory. The weights are read once, between two equal readings of the config.

    Args:
        directory: adapter_config.json and adapter_model.safetensors.
        name: what the expert is called.
        backbone_digest: digest of the model that it is served on.

    Returns:
        The digest of both files' content and the expert. Its factors have the file's dtype (float64: float32) and its
        metadata has `base_model_name_or_path` if the adapter has it.

    Raises:
        MissingFileError, UnreadableFileError: the directory or one of the files is not there or cannot be read.
        AdapterError: not a plain LoRA of linear layers and embeddings, pickled, factors that are missing, of a wrong
            shape or not finite. The message names the first fault and counts the others.
    """
    config, text = _read_config(directory)
    _check_servable(directory, config)
    try:
        file = read_tensor_file(directory / ADAPTER_WEIGHTS)
    except MissingFileError as error:
        raise _without_weights(directory) from error
    if _read_config(directory)[1] != text:
        raise UnreadableFileError(f"{directory} is being written to: write a copy and rename it into place")
    modules = _grouped(directory, list(file.tensors))
    low_rank: dict[str, LowRankDelta] = {}
    faults: list[str] = []
    for module, names in modules.items():
        try:
            low_rank[f"{module}.weight"] = _delta(module, names, file.tensors, config)
        except AdapterError as error:
            faults += error.faults
    _settle(directory, faults)
    digest = hashlib.sha256(text + file.digest.encode()).hexdigest()
    metadata = {"base_model_name_or_path": config.base} if config.base else {}
    return digest, Expert(name, backbone_digest, 0.0, {}, {}, metadata, low_rank=low_rank)


def read_adapter_ranks(directory: Path) -> Mapping[str, int]:
    """The rank of each weight that an adapter changes, from its config and the header of its weights.

    Raises:
        MissingFileError, UnreadableFileError, AdapterError: as `read_adapter`, as far as headers tell.
        BundleError: the weights are damaged.
    """
    config, _ = _read_config(directory)
    _check_servable(directory, config)
    path = directory / ADAPTER_WEIGHTS
    try:
        # `pread`: a mapped file that another process truncates would end this one with SIGBUS.
        with safe_open(path, framework="pt", backend="pread") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        failure = read_failure(path, error)
        raise (_without_weights(directory) if isinstance(failure, MissingFileError) else failure) from error
    return {f"{module}.weight": config.rank(module) for module in _grouped(directory, names)}


def _read_config(directory: Path) -> tuple[AdapterConfig, bytes]:
    path = directory / ADAPTER_CONFIG
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _without_config(directory) from error
    except OSError as error:
        raise UnreadableFileError(unreadable(path, error)) from error
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return parse_adapter_config(values, str(path)), text


def _check_servable(directory: Path, config: AdapterConfig) -> None:
    """Refuse what merging takes and a low-rank part cannot hold."""
    path = directory / ADAPTER_CONFIG
    if config.dora:
        raise AdapterError(f"{path}: use_dora is true, and DoRA is not low-rank; {MERGED}")
    if config.modules_to_save:
        saved = ", ".join(config.modules_to_save)
        raise AdapterError(f"{path}: modules_to_save has {saved}, whole modules beside the factors; {MERGED}")
    if config.bias != "none":
        raise AdapterError(f"{path}: bias is {config.bias!r}, which replaces biases of the model; {MERGED}")
    if config.fan_in_fan_out:
        raise AdapterError(f"{path}: fan_in_fan_out is true; the served models store no weight transposed; {MERGED}")


def _without_config(directory: Path) -> BundleError:
    if not directory.exists():
        hub = "" if directory.parent.exists() else "; nothing is downloaded: fetch it first (`hf download`)"
        return MissingFileError(f"no adapter directory at {directory}{hub}")
    if not directory.is_dir():
        return AdapterError(f"{directory} is a file; a LoRA adapter is a directory with {ADAPTER_CONFIG}")
    return MissingFileError(f"{directory} has no {ADAPTER_CONFIG}: it is not a PEFT adapter")


def _without_weights(directory: Path) -> BundleError:
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        return AdapterError(
            f"{directory} has {pickles[0]} and no {ADAPTER_WEIGHTS}: pickled weights can run code when opened; if "
            "you trust them, convert them with PeftModel.from_pretrained(base, ...).save_pretrained(...)"
        )
    return MissingFileError(f"{directory} has no {ADAPTER_WEIGHTS}")


def _grouped(directory: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Each adapted module's factors: kind of factor → name in the file."""
    modules: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    faults: list[str] = []
    for name in sorted(names):
        parsed = AdapterTensorName.parse(name)
        if parsed.factor == "magnitude":
            faults.append(f"{name} is a magnitude vector of DoRA; {MERGED}")
        elif parsed.factor:
            factors = modules.setdefault(parsed.module, {})
            if parsed.factor in factors:
                faults.append(f"{name} and {factors[parsed.factor]} are the same factor: keep one")
            factors[parsed.factor] = name
        elif parsed.other:
            faults.append(f"{name} is not a factor of a plain LoRA; merge the adapter with peft first")
        else:
            whole[parsed.inner] = name
    for inner, name in whole.items():
        # Beside the factors of an embedding PEFT saves the embedding that they were trained on.
        if ".base_layer." in name and inner.removesuffix(".weight") in modules:
            continue
        faults.append(_whole(name, inner))
    if not modules and not faults:
        faults.append("it holds no factors: nothing to serve")
    _settle(directory, faults)
    return modules


def _whole(name: str, inner: str) -> str:
    if inner.split(".")[-2:-1] in (["embed_tokens"], ["lm_head"]):
        return (
            f"{name} is a whole embedding; if it is the base's, save the adapter with save_embedding_layers=False; if "
            f"it was trained, {MERGED}; one of a resized vocabulary does not fit the base"
        )
    return f"{name} replaces a whole tensor; {MERGED}"


def _delta(module: str, names: Mapping[str, str], tensors: Mapping[str, Tensor], config: AdapterConfig) -> LowRankDelta:
    embedding = "embedding_a" in names or "embedding_b" in names
    first, second = ("embedding_a", "embedding_b") if embedding else ("a", "b")
    if set(names) != {first, second}:
        raise AdapterError(f"{module} has one factor only; A and B are needed")
    a, b = tensors[names[first]], tensors[names[second]]
    rank = config.rank(module)
    for name, factor, dimension in ((names[first], a, 0), (names[second], b, 1)):
        if factor.dtype not in (*_FLOATS, torch.float64):
            raise AdapterError(f"{name} is {factor.dtype}; factors must be float32, float16 or bfloat16")
        if factor.dim() != 2:
            raise AdapterError(f"{name} is {list(factor.shape)}; only linear layers and embeddings are served")
        if factor.shape[dimension] != rank:
            raise AdapterError(f"{name} is {list(factor.shape)}; {ADAPTER_CONFIG} gives {module} the rank {rank}")
        if not bool(torch.isfinite(factor).all()):
            raise AdapterError(f"{name} holds NaN or infinity")
    dtype = torch.promote_types(a.dtype, b.dtype)
    dtype = dtype if dtype in _FLOATS else torch.float32
    if embedding:  # which is stored as [V, H] and adapted as [H, V]
        a, b = b.T, a.T
    scale = torch.full((rank,), config.scale(module), dtype=torch.float32)
    return LowRankDelta(a.to(dtype).contiguous(), b.to(dtype).contiguous(), scale)


def _settle(directory: Path, faults: list[str]) -> None:
    """Raise the first fault, with the number of the others: a wrong adapter is often wrong in every layer.

    Raises:
        AdapterError: there is one.
    """
    if faults:
        more = f" (and {len(faults) - 1} more like it)" if len(faults) > 1 else ""
        raise AdapterError(f"{directory}: {faults[0]}{more}")
