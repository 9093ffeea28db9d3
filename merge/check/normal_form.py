"""One form for the many ways in which config.json says the same thing.

transformers 4 wrote `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters`. Version 5 also writes
defaults that version 4 left out or wrote as null, and drops settings that are switched off. Both spellings are read by
the model's own configuration class, so a default is the class's. What the classes keep apart although it means the
same is then unified here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING

YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
"""transformers' defaults of YaRN's settings."""


def normal_forms(*configs: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Bring config.json files into a form in which equal meanings are equal values.

    If the class of one of them is unknown, or does not accept it, none of them is read by its class: defaults would
    otherwise be present on one side only.

    Returns:
        Of each, its fields by dotted name, as in `rope_parameters.rope_theta` and `vision_config.patch_size`.
    """
    read = [_read_by_class(config) for config in configs]
    documents = [item for item in read if item is not None]
    return tuple(dict(_flat(_unified(item))) for item in (documents if len(documents) == len(configs) else configs))


def _read_by_class(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return all fields with the class's defaults, or None if the class is unknown or refuses the values."""
    kind = CONFIG_MAPPING[config["model_type"]] if config.get("model_type") in CONFIG_MAPPING else None
    if kind is None:
        return None
    document = _with_floats(dict(config))
    # Version 4's classes understood this null; some of version 5's refuse it.
    if document.get("num_key_value_heads", 1) is None and isinstance(document.get("num_attention_heads"), int):
        document["num_key_value_heads"] = document["num_attention_heads"]
    try:
        fields: dict[str, Any] = kind.from_dict(document).to_dict()
    except Exception:  # validation raises errors of huggingface_hub, KeyError, TypeError and ValueError
        return None
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if fields.get("head_dim") is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        fields["head_dim"] = hidden // heads  # Qwen2's class leaves this to the model
    return fields


def _with_floats(value: Any) -> Any:
    """A copy in which infinities are numbers: transformers 5 writes them as `{"__float__": "Infinity"}`."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_floats(item) for key, item in value.items()}
    return [_with_floats(item) for item in value] if isinstance(value, list) else value


def _unified(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _unified(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    if {"rope_theta", "rope_scaling", "rope_parameters"} & set(config):
        scaling = config.get("rope_scaling") if isinstance(config.get("rope_scaling"), Mapping) else {}
        given = config.get("rope_parameters") if isinstance(config.get("rope_parameters"), Mapping) else {}
        theta = {"rope_theta": found.pop("rope_theta")} if "rope_theta" in found else {}
        found.pop("rope_scaling", None)
        found["rope_parameters"] = _rope({**theta, **(scaling or {}), **(given or {})})
    if isinstance(found.get("layer_types"), list):
        # The kinds of the layers say what these two were for.
        found.pop("max_window_layers", None)
        found.pop("use_sliding_window", None)
        if "sliding_attention" not in found["layer_types"]:
            found.pop("sliding_window", None)
    elif found.get("use_sliding_window") is False:
        found["sliding_window"] = None
    return found


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings, of all layers or by the layers' kind, without those that are absent or the default."""
    nested = {key: _rope(value) for key, value in given.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in given.items() if key not in nested and key != "type" and value is not None}
    if nested:
        # transformers adds a default for all layers beside these, which no layer uses.
        return nested
    kind = given.get("rope_type") or given.get("type") or "default"
    defaults = YARN_DEFAULTS if kind == "yarn" else {}
    return {**{key: value for key, value in flat.items() if defaults.get(key) != value}, "rope_type": kind}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
