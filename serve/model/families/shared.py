"""What all families read alike."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from kernels.gated import Activation
from merge.bundle import BundleError, end_tokens, open_shard
from merge.bundle.quantised import QuantisationError, read_quantisation
from serve.model.config import LayerConfig, ModelConfig
from serve.model.errors import ModelError
from serve.model.rope import RopeConfig, nested_kinds, parse_ropes
from serve.model.settings import Settings

FULL, SLIDING = "full_attention", "sliding_attention"
"""Values of `layer_types`."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def decoder_config(
    settings: Settings,
    layer: LayerConfig,
    kinds: Sequence[str] | None = None,
    *,
    window: int | None = None,
    ropes: Mapping[str, RopeConfig] | None = None,
    head_dim: int | None = None,
    tied: bool = False,
    eps: float = 1e-6,
    activation: str | None = "hidden_act",
) -> ModelConfig:
    """The configuration of a family.

    Args:
        settings: config.json.
        layer: what all layers compute alike.
        kinds: each layer's kind of attention; None: all are `FULL`, and config.json may not tell them apart.
        window: the sliding window of layers of the kind `SLIDING`.
        ropes: the rope of each kind; None: as config.json says.
        head_dim: of each head if config.json does not have it; None: hidden_size / num_attention_heads.
        tied: whether the head is the embedding if config.json does not have it.
        eps: of the norms if config.json does not have it.
        activation: the field that names the activation; None: it is what `layer` says.

    Raises:
        ModelError: a setting that is not implemented, or that is missing.
    """
    try:
        read_quantisation(settings.raw)
    except QuantisationError as error:
        raise ModelError(str(error)) from error
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    layers = settings.count("num_hidden_layers")
    of_each = [FULL] * layers if kinds is None else kinds
    if ropes is None:
        _check_rope_kinds(settings, kinds)
        ropes = parse_ropes(settings.raw, set(of_each))
    default = hidden // heads if head_dim is None else head_dim
    positions = settings.count("max_position_embeddings")
    config = ModelConfig(
        architecture=settings.architecture,
        vocab_size=settings.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=settings.count("intermediate_size"),
        num_heads=heads,
        num_kv_heads=int(settings.raw.get("num_key_value_heads") or heads),
        head_dim=int(settings.raw.get("head_dim") or default),
        layers=tuple(
            replace(
                layer,
                window=int(window) if window and kind == SLIDING else None,
                rope=ropes[kind],
                activation=_activation(settings, activation, layer.activation),
            )
            for kind in of_each
        ),
        rms_norm_eps=settings.number("rms_norm_eps", eps),
        tied=settings.flag("tie_word_embeddings", tied),
        max_positions=positions,
        longest_positions=max(positions, *(rope.longest_positions for rope in ropes.values())),
        dtype=_dtype(settings),
        eos_token_ids=end_tokens(settings.directory),
    )
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"num_attention_heads {config.num_heads} is not a multiple of num_key_value_heads {config.num_kv_heads}"
        )
    for rope in set(ropes.values()):
        rope.check(config.head_dim)
    return config


def layer_kinds(settings: Settings, usual: Sequence[str]) -> list[str]:
    """`layer_types` of config.json, or `usual` if it has none.

    Raises:
        ModelError: they are not as many as layers, or of a kind that is not implemented.
    """
    kinds, layers = list(settings.raw.get("layer_types") or usual), settings.count("num_hidden_layers")
    if len(kinds) != layers:
        raise ModelError(f"layer_types names {len(kinds)} layers, num_hidden_layers says {layers}")
    if unknown := sorted({str(kind) for kind in kinds} - {FULL, SLIDING}):
        raise ModelError(f"layer_types names {unknown[0]!r}, which is not implemented; these are: {FULL}, {SLIDING}")
    return kinds


def _activation(settings: Settings, key: str | None, usual: Activation) -> Activation:
    name = None if key is None else settings.raw.get(key)
    if name is None:
        return usual
    if name not in _ACTIVATIONS:
        raise ModelError(f"{key} {name!r} is not implemented; these are: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _check_rope_kinds(settings: Settings, kinds: Sequence[str] | None) -> None:
    if kinds is not None:
        return
    for key, names in nested_kinds(settings.raw).items():
        raise ModelError(
            f"config.json: {key} has settings by kind of layer ({', '.join(names)}), which {settings.architecture} "
            "does not have: all layers must share one rope"
        )


def _dtype(settings: Settings) -> torch.dtype:
    said = settings.raw.get("dtype") or settings.raw.get("torch_dtype") or "float32"
    if said == "auto":  # as in transformers: that of the stored weights
        return _stored_dtype(settings)
    dtype = _DTYPES.get(str(said).removeprefix("torch."))
    if dtype is None:
        raise ModelError(f"dtype is {said!r}; it must be one of {', '.join(_DTYPES)}, auto")
    return dtype


def _stored_dtype(settings: Settings) -> torch.dtype:
    for shard in sorted(settings.directory.glob("*.safetensors")):
        try:
            with open_shard(shard) as file:
                names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
                found = {names.get(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        except BundleError as error:
            raise ModelError(str(error)) from error
        widest = next((name for name in _DTYPES if name in found), None)
        if widest is not None:
            return _DTYPES[widest]
    raise ModelError(f"dtype is 'auto', but {settings.directory} has no safetensors file with weights to take it from")
