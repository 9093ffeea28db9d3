"""adapter_config.json of PEFT (https://github.com/huggingface/peft), as far as merging and serving need it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merge.bundle.errors import BundleError

ADAPTER_CONFIG = "adapter_config.json"

WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "alpha_pattern", "rank_pattern", "r", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type", "use_dora", "use_rslora", "init_lora_weights",
})  # fmt: skip
"""Keys that are honoured, or that have no effect on what a stored adapter computes."""

CHANGED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that take the factors' first value out of the base: the adapter is wrong on the original base."""


class AdapterError(BundleError):
    """A LoRA directory cannot be used. The message is one line.

    Attributes:
        faults: what is wrong, one by one; the message joins them.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class AdapterConfig:
    """How the factors of an adapter are scaled.

    Attributes:
        r, alpha: rank and numerator of the scale.
        rank_pattern, alpha_pattern: the same for modules whose name ends in a match of the key.
        rslora: divide by √r in place of r.
        dora: weights are renormalised to stored magnitudes.
        fan_in_fan_out: weights are stored transposed.
        bias: which biases the adapter replaces: "none", "all" or "lora_only".
        modules_to_save: modules that the adapter replaces as a whole.
        base: name or path of the model that the adapter was trained on; "" if that is not known.
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    fan_in_fan_out: bool
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    base: str = ""

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        return int(_matching(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """What the product of a module's factors is multiplied by: α / r, or α / √r."""
        rank = self.rank(module)
        return float(_matching(self.alpha_pattern, module, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)


def parse_adapter_config(values: Mapping[str, Any], path: str) -> AdapterConfig:
    """Check the content of an adapter_config.json.

    Args:
        values: the JSON object.
        path: the file's path, for messages.

    Raises:
        AdapterError: a field is malformed, or the adapter is not a plain LoRA or DoRA; all faults are named.
    """
    kind = values.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{path}: peft_type {kind!r} is not supported; only LORA is")
    faults: list[str] = []
    start = str(values.get("init_lora_weights")).lower()
    if start.startswith(CHANGED_BASE):
        faults.append(
            f"{path}: init_lora_weights {start!r} trained against a changed base; save the adapter with peft's "
            "path_initial_model_for_weight_conversion, or merge it into its own base first"
        )
    for key in sorted(set(values) - WITHOUT_EFFECT):
        if values[key]:
            faults.append(f"{path}: {key} is {values[key]!r}, which is not supported; merge it with peft first")
    for key, right in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(values.get(key), right) or isinstance(values.get(key), bool) or values[key] <= 0:
            faults.append(f"{path}: {key} is {values.get(key)!r}; it must be a positive number")
    for key in ("rank_pattern", "alpha_pattern"):
        if not _is_pattern(values.get(key) or {}):
            faults.append(f"{path}: {key} should map patterns of module names to positive numbers")
    if faults:
        raise AdapterError(*faults)
    saved = values.get("modules_to_save") or ()
    return AdapterConfig(
        r=values["r"],
        alpha=values["lora_alpha"],
        rank_pattern=values.get("rank_pattern") or {},
        alpha_pattern=values.get("alpha_pattern") or {},
        rslora=bool(values.get("use_rslora")),
        dora=bool(values.get("use_dora")),
        fan_in_fan_out=bool(values.get("fan_in_fan_out")),
        bias=str(values.get("bias") or "none"),
        modules_to_save=(saved,) if isinstance(saved, str) else tuple(map(str, saved)),
        base=str(values.get("base_model_name_or_path") or ""),
    )


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, dict) and all(re.compile(key) and number > 0 for key, number in value.items())
    except (re.error, TypeError):
        return False


def _matching(pattern: Mapping[str, float], module: str, usual: float) -> float:
    """The value of the first key that a module's name ends in, PEFT's rule."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), usual)
