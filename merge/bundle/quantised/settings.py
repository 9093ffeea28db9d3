"""`quantization_config` in config.json: which formats are read, and what is written."""

from collections.abc import Mapping
from typing import Any

from merge.bundle.quantised.scheme import SCHEMES, Scheme

FORMAT = "pack-quantized"
BITS = frozenset({4, 8})
ROUNDED = "overtone_embedding_bits"
"""Key of config.json: bits that the embedding and the head fit into. transformers loads no packed embeddings, so they
are stored multiplied out, and a server that holds them in 8 bits again must know that nothing is lost."""
_ADVICE = (
    "give the unquantised checkpoint (overtone serve --quantization int8 or int4 quantises it), or one in "
    f"compressed-tensors' format {FORMAT} with symmetric weights in 8 or 4 bits"
)


class QuantisationError(ValueError):
    """A quantised checkpoint is damaged, or of a format that is not supported. The message is one line."""


def read_quantisation(config: Mapping[str, Any]) -> frozenset[Scheme]:
    """How a checkpoint's weights are quantised.

    Args:
        config: config.json.

    Returns:
        The schemes of its `config_groups`; none if the checkpoint is not quantised.

    Raises:
        QuantisationError: another format (GPTQ, AWQ, bitsandbytes, FP8, ...), quantised activations, zero points.
    """
    given = config.get("quantization_config")
    if given is None:
        return frozenset()
    if not isinstance(given, Mapping):
        raise QuantisationError(f"config.json: quantization_config is {given!r}; it must be an object")
    method = given.get("quant_method")
    if method != "compressed-tensors":
        raise QuantisationError(
            f"config.json: quantization_config is {_called(given)}, which is not supported: {_ADVICE}"
        )
    if given.get("format") != FORMAT:
        raise QuantisationError(
            f"config.json: the compressed-tensors format {given.get('format')!r} is not supported: {_ADVICE}"
        )
    groups = given.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise QuantisationError("config.json: quantization_config has no config_groups")
    return frozenset(_scheme(name, group) for name, group in groups.items())


def _called(given: Mapping[str, Any]) -> str:
    method = given.get("quant_method")
    if method is None and (given.get("load_in_8bit") or given.get("load_in_4bit")):
        return "of bitsandbytes"
    if method is None:
        return "without a quant_method"
    names = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "fbgemm_fp8": "FP8"}
    return f"of {names.get(str(method), repr(method))}"


def _scheme(name: str, group: Any) -> Scheme:
    where = f"config.json: quantization_config.config_groups.{name}"
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise QuantisationError(f"{where} has no weights: {_ADVICE}")
    if group.get("format") not in {None, FORMAT}:
        raise QuantisationError(f"{where} has the format {group['format']!r}, which is not supported: {_ADVICE}")
    for kind in ("input_activations", "output_activations"):
        if group.get(kind):
            raise QuantisationError(f"{where} quantises {kind}, which is not supported: {_ADVICE}")
    weights = group["weights"]
    wanted: dict[str, tuple[object, ...]] = {
        "type": ("int", None),
        "symmetric": (True, None),
        "dynamic": (False, None),
        "strategy": ("channel", "group", None),
        "num_bits": tuple(BITS),
    }
    for key, allowed in wanted.items():
        if weights.get(key) not in allowed:
            said = " or ".join(repr(value) for value in allowed if value is not None)
            raise QuantisationError(f"{where}.weights.{key} is {weights.get(key)!r}; it must be {said}: {_ADVICE}")
    if weights.get("actorder"):
        raise QuantisationError(f"{where} orders columns by activations, which is not supported: {_ADVICE}")
    size = weights.get("group_size")
    if weights.get("strategy") == "channel" or size in {None, -1}:
        return Scheme(weights["num_bits"])
    if type(size) is not int or size < 1:
        raise QuantisationError(f"{where}.weights.group_size is {size!r}; it must be a positive whole number")
    return Scheme(weights["num_bits"], size)


def has_rounded_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the embedding and the head, which are stored floating, have values of 8 bits with a scale a row.

    Args:
        config: config.json.
    """
    return config.get(ROUNDED) == 8


def write_quantisation(config: Mapping[str, Any], storage: str) -> dict[str, Any]:
    """config.json of a quantised backbone, whose embedding and head are rounded but not packed.

    Args:
        config: of the unquantised one.
        storage: a key of `SCHEMES`.
    """
    settings = {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": _group(["Linear"], SCHEMES[storage])},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    return {**config, ROUNDED: 8, "quantization_config": settings}


def _group(targets: list[str], scheme: Scheme) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "dynamic": False,
    }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }
