"""Reading a Hugging Face model directory into a decoder."""

from collections.abc import Set
from pathlib import Path

import torch

from kernels import on_gpu
from merge.bundle import BundleError, model_shards, open_shard
from serve.model.decoder import Decoder
from serve.model.errors import ModelError
from serve.model.families import read_config
from serve.model.huge_pages import hold_together
from serve.model.quantised_weights import QuantisedReader, Stored, quantisation_of


def load_model(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    max_positions: int | None = None,
    quantisation: str | None = None,
) -> Decoder:
    """Load a model of a served family.

    Args:
        directory: config.json with model.safetensors, or with an index and its shards.
        dtype: of weights and activations; None: as stored.
        device: the device of the weights.
        max_positions: longest sequence that will be computed; None: what the model was made for.
        quantisation: int8 or int4: round weights to 8 or 4 bits as they are read (embeddings and the head to 8); on a
            CPU, in bfloat16 or float32, or on a GPU with Triton. None: as stored.

    Raises:
        ModelError: another architecture; a tensor that is missing, unknown, damaged or of another shape (named); no
            weights; a quantisation that is not for this device or dtype.
    """
    directory = Path(directory)
    config = read_config(directory)
    decoder = Decoder(config, max_positions or config.max_positions, dtype or config.dtype, torch.device(device))
    stored = quantisation_of(directory)
    if stored.schemes or quantisation is not None:
        return _load_quantised(directory, decoder, stored, quantisation)
    parts = dict.fromkeys(placement.part for placement in decoder.placements.values())
    hold_together([part.tensor for part in parts])
    missing = set(decoder.placements)
    for shard in _shards(directory):
        missing -= _read_shard(shard, decoder)
    _check_complete(directory, missing)
    return decoder


def _load_quantised(directory: Path, decoder: Decoder, stored: Stored, quantisation: str | None) -> Decoder:
    if quantisation is not None and stored.schemes:
        raise ModelError(f"{directory} is quantised already: serve it without a quantization")
    packs = _packs(decoder)
    if quantisation is not None and not packs:
        raise ModelError(
            f"quantization {quantisation} is for a CPU, in bfloat16 or float32, or a GPU with Triton (pip install "
            f"'.[gpu]'); this model runs in {str(decoder.dtype).removeprefix('torch.')} on {decoder.device}"
        )
    reader = QuantisedReader(_shards(directory), stored, quantisation)
    names = {name for name in reader.names if not _is_derived(name, decoder)}
    for name in sorted(names - decoder.placements.keys()):
        raise ModelError(_unknown(reader.file(name), name, decoder))
    _check_complete(directory, decoder.placements.keys() - names)
    reader.load(decoder, packs)
    return decoder


def _packs(decoder: Decoder) -> bool:
    """Whether there are kernels for weights in few bits, on the decoder's device and in its dtype."""
    if on_gpu.runs_triton(decoder.norm.weight):
        return True
    return decoder.device.type == "cpu" and decoder.dtype in {torch.bfloat16, torch.float32}


def _check_complete(directory: Path, missing: Set[str]) -> None:
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{directory} lacks the tensor {min(missing)!r}{more}")


def _unknown(path: Path, name: str, decoder: Decoder) -> str:
    return f"{path} holds {name!r}, which {decoder.config.architecture} of this config.json lacks"


def _read_shard(path: Path, decoder: Decoder) -> set[str]:
    seen = set()
    try:
        with open_shard(path) as shard:
            for name in shard.keys():  # noqa: SIM118 (not a mapping)
                if _is_derived(name, decoder):
                    continue
                placement = decoder.placements.get(name)
                if placement is None:
                    raise ModelError(_unknown(path, name, decoder))
                tensor = shard.get_tensor(name)
                if tuple(tensor.shape) != placement.shape:
                    raise ModelError(
                        f"{path}: {name} is {list(tensor.shape)}; config.json implies {list(placement.shape)}"
                    )
                placement.target.copy_(tensor)
                seen.add(name)
    except BundleError as error:
        raise ModelError(str(error)) from error
    return seen


def _is_derived(name: str, decoder: Decoder) -> bool:
    """Tensors that some checkpoints store although others imply them."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and decoder.config.tied)


def _shards(directory: Path) -> list[Path]:
    try:
        return model_shards(directory)
    except BundleError as error:
        raise ModelError(str(error)) from error
