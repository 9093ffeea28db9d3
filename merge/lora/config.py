"""adapter_config.json of PEFT (https://github.com/huggingface/peft), as far as merging needs it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint import CheckpointError, Faults, read_json

ADAPTER_CONFIG = "adapter_config.json"

WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "alpha_pattern", "rank_pattern", "r", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type", "use_dora", "use_rslora", "init_lora_weights",
})  # fmt: skip
"""Keys that are honoured, or that say nothing about what a stored adapter computes."""

CHANGED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that take the factors' first value out of the base: the adapter is wrong on the original base."""


@dataclass(frozen=True)
class AdapterConfig:
    """How the factors of an adapter are scaled.

    Attributes:
        r, alpha: rank and numerator of the scale.
        rank_pattern, alpha_pattern: the same for modules whose name ends in a match of the key.
        rslora: divide by √r in place of r.
        dora: weights are renormalised to stored magnitudes.
        fan_in_fan_out: weights are stored transposed.
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    fan_in_fan_out: bool

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        return int(_matching(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """What the product of a module's factors is multiplied by: α / r, or α / √r."""
        rank = self.rank(module)
        return float(_matching(self.alpha_pattern, module, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read a directory's adapter_config.json.

    Raises:
        CheckpointError: there is none, a field is malformed, or it asks for something that is no plain LoRA.
    """
    path = directory / ADAPTER_CONFIG
    values = read_json(path)
    faults = Faults()
    kind = values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type {kind!r} is not supported; only LORA is")
    start = str(values.get("init_lora_weights")).lower()
    if start.startswith(CHANGED_BASE):
        faults.found.append(
            f"{path}: init_lora_weights {start!r} trained against a changed base; save the adapter with peft's "
            "path_initial_model_for_weight_conversion, or merge it into its own base first"
        )
    for key in sorted(set(values) - WITHOUT_EFFECT):
        if values[key]:
            faults.found.append(f"{path}: {key} is {values[key]!r}, which is not supported; merge it with peft first")
    for key, right in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(values.get(key), right) or isinstance(values.get(key), bool) or values[key] <= 0:
            faults.found.append(f"{path}: {key} is {values.get(key)!r}; it should be a positive number")
    for key in ("rank_pattern", "alpha_pattern"):
        if not _is_pattern(values.get(key) or {}):
            faults.found.append(f"{path}: {key} should map patterns of module names to positive numbers")
    faults.settle()
    return AdapterConfig(
        r=values["r"],
        alpha=values["lora_alpha"],
        rank_pattern=values.get("rank_pattern") or {},
        alpha_pattern=values.get("alpha_pattern") or {},
        rslora=bool(values.get("use_rslora")),
        dora=bool(values.get("use_dora")),
        fan_in_fan_out=bool(values.get("fan_in_fan_out")),
    )


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, dict) and all(re.compile(key) and number > 0 for key, number in value.items())
    except (re.error, TypeError):
        return False


def _matching(pattern: Mapping[str, float], module: str, usual: float) -> float:
    """The value of the first key that a module's name ends in, PEFT's rule."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), usual)
