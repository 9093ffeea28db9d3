"""From a bundle to an engine: load, allocate, assemble."""

import dataclasses
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from kernels.attention.varlen import BLOCK, on_device
from merge.bundle import Bundle, BundleError, ExpertLayout, available_host_bytes
from serve.config.engine import EngineConfig
from serve.engine.device import device_of, prepare
from serve.engine.engine import Engine
from serve.engine.errors import EngineError
from serve.engine.graphs import captures_steps
from serve.engine.loop import AsyncEngine
from serve.engine.lora import LoraRoom
from serve.engine.memory import num_blocks
from serve.engine.patch_costs import PatchCosts, measure_patch_costs
from serve.engine.patching import Patching
from serve.engine.records import EngineObserver, SilentObserver
from serve.experts import AdapterRules, ExpertLoadError, ExpertStore
from serve.model import (
    Decoder,
    KvCache,
    ModelConfig,
    ModelError,
    ResidualBanks,
    ResidualShape,
    load_model,
    read_config,
)

MAX_DEFAULT_SLOTS = 64

LORA_SLOTS = 8
"""Default number of slots if adapters can be loaded later."""

HOST_SHARE = 0.3
"""Largest part of the host's free memory, once everything else is in place, that experts are kept in by default."""

_log = logging.getLogger("overtone")

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_engine(
    bundle: Bundle,
    config: EngineConfig,
    observer: EngineObserver | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> AsyncEngine:
    """Load a bundle's backbone, make slots for its experts, and KV blocks in what memory remains.

    Args:
        bundle: the bundle, or a model directory opened as one.
        config: the settings.
        observer: receives the engine's events.
        adapters: directories of LoRA adapters of the backbone, by the names that requests ask for them.

    Raises:
        ModelError: the backbone cannot be served.
        EngineError: an adapter cannot be served, or a setting does not fit the model, the machine or the memory; the
            message names it.
    """
    observer = observer or SilentObserver()
    adapters = adapters or {}
    if both := sorted(set(adapters) & set(bundle.expert_names)):
        raise EngineError(f"the adapter {both[0]!r} has the name of an expert of {bundle.path}: choose another name")
    room = LoraRoom.of(config, adapters)
    device = device_of(config)
    prepare(device)
    model = read_config(bundle.backbone_dir)
    if on_device(device):
        config = dataclasses.replace(config, block_size=-(-config.block_size // BLOCK) * BLOCK)
    spare = captures_steps(config, device) and model.capturable
    if spare and config.patching == "auto":
        _log.warning(
            "patching is timed with steps that are launched kernel by kernel; captured ones gain less, so that it "
            "begins sooner than it pays: enforce_eager makes the two alike"
        )
    max_model_len = _max_model_len(config, model)
    decoder = load_model(bundle.backbone_dir, _dtype(config), device, max_model_len, config.quantization)
    names = bundle.expert_names
    slots = _slots(config, len(names) + len(adapters))
    layouts, unreadable = _layouts(bundle)
    if unreadable:
        _log.error(
            "%d of %d experts cannot be served, and a slot may be too small for them later; the first: %s",
            *(len(unreadable), len(names), unreadable[0]),
        )
    ranks = room.ranks({name: placement.shape for name, placement in decoder.placements.items()})
    shape = dataclasses.replace(ResidualShape.of_layouts(layouts), adapter_ranks=ranks)
    banks = ResidualBanks(decoder, shape, slots)
    costs = _patch_costs(bundle, decoder, banks, config) if config.patching == "auto" else None
    blocks = num_blocks(decoder, config, max_model_len, spare)
    cache = KvCache.allocate(decoder.config, blocks, config.block_size, decoder.dtype, device, spare)
    host_bytes = config.max_expert_host_bytes
    if host_bytes is None:
        host_bytes = int(available_host_bytes() * HOST_SHARE)
    wake = threading.Event()
    rules = AdapterRules(room.max_rank, bundle.backbone_dir, decoder.config.tied)
    experts = ExpertStore(banks, bundle.manifest.backbone_digest, observer, host_bytes, wake.set, rules)
    for name in names:
        experts.register(name, bundle.expert_path(name), bundle.card(name).digest)
    for name, path in adapters.items():
        try:
            experts.load(name, path)
        except ExpertLoadError as error:
            raise EngineError(str(error)) from error
    engine = Engine(decoder, cache, experts, Patching(banks, costs), config, max_model_len, observer)
    return AsyncEngine(engine, config, observer, wake)


def _layouts(bundle: Bundle) -> tuple[list[ExpertLayout], list[BundleError]]:
    """What the headers of the experts' files say, and why some of them could not be read."""
    layouts: list[ExpertLayout] = []
    errors: list[BundleError] = []
    for name in bundle.expert_names:
        try:
            layouts.append(bundle.expert_layout(name))
        except BundleError as error:
            errors.append(error)
    return layouts, errors


def _slots(config: EngineConfig, experts: int) -> int:
    if config.max_expert_slots is not None:
        return config.max_expert_slots
    return min(max(experts, LORA_SLOTS if config.enable_lora else 0), MAX_DEFAULT_SLOTS)


def _patch_costs(bundle: Bundle, decoder: Decoder, banks: ResidualBanks, config: EngineConfig) -> PatchCosts | None:
    """Timed with the bundle's first expert that can be read and patched; None if there is none, or that fails."""
    skipped = False
    for name in bundle.expert_names if banks.slots else ():
        try:
            packed = banks.pack(bundle.read_expert(name))
        except (BundleError, ModelError):
            continue  # it is refused, with the reason, when a request names it
        banks.load(0, packed)
        if not banks.patches(0):
            skipped = True
            continue
        try:
            costs = measure_patch_costs(decoder, banks, 0, config.max_num_batched_tokens)
        except Exception as error:
            banks.unpatch()
            _log.warning("patching could not be timed, steps stay fused: %s: %s", type(error).__name__, error)
            return None
        _log.info("patching, timed with expert %s: %s", name, costs)
        return costs
    if skipped:
        _log.info(
            "patching is off: low-rank experts and weights of few bits are not patched, and there is no other expert "
            "to time"
        )
    return None


def _dtype(config: EngineConfig) -> torch.dtype | None:
    if config.dtype not in _DTYPES:
        raise EngineError(f"dtype is {config.dtype!r}; it must be one of {', '.join(_DTYPES)}")
    return _DTYPES[config.dtype]


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    if config.max_model_len is not None and config.max_model_len > model.longest_positions:
        raise EngineError(
            f"max_model_len is {config.max_model_len}; it must be at most {model.longest_positions}, the longest "
            "sequence that the model's config.json allows"
        )
    length = config.max_model_len or model.max_positions
    short = next((layer.rope.original_positions for layer in model.layers if layer.rope.kind == "longrope"), length)
    if length > short:
        _log.info(
            "contexts of up to %d tokens are longer than the %d that the model was first trained on, so that all "
            "sequences use the rope's factors of long contexts; --max-model-len %d takes those of short ones",
            *(length, short, short),
        )
    return length
