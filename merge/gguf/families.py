"""From a GGUF file's metadata to a config.json: only architectures whose every key is understood."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from merge.checkpoint import CheckpointError
from merge.gguf.metadata import Metadata
from merge.gguf.rope import FACTORS, rope_parameters
from merge.gguf.special import LONG, SHORT, gemma2, gemma3, phi3

COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
}
"""Keys that all of these architectures have, with Hugging Face's names."""

UNDERSTOOD = (
    "vocab_size",  # that of the embedding counts
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "expert_count",
    "expert_used_count",
)
"""Keys that are read elsewhere, or change nothing."""


def nothing(_metadata: Metadata, _config: Mapping[str, Any]) -> dict[str, Any]:
    """Return no settings: the family has no special ones."""
    return {}


@dataclass(frozen=True)
class Routed:
    """What a checkpoint calls the tensors of a routed feed-forward, of which a GGUF file stacks those of all MLPs.

    Attributes:
        module: the module in a layer.
        gate, up, down: the matrices of one MLP.
    """

    module: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Family:
    """One of llama.cpp's architectures.

    Attributes:
        class_name, model_type: transformers'.
        permuted: whether llama.cpp's converter interleaves the rows of the query and key weights of each head.
        own: further keys, with Hugging Face's names.
        settings: further settings of config.json.
        norm_offset: what llama.cpp's converter adds to the weights of norms.
        special: further settings, of the file and the config.json so far.
        looked_at: keys that `special` reads.
        tensors: names of tensors that hold settings instead of parameters.
        partial: whether a part of each head may be rotated.
        routed: the tensors of a routed feed-forward; None: there is none.
    """

    class_name: str
    model_type: str
    permuted: bool = False
    own: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    norm_offset: float = 0.0
    special: Callable[[Metadata, Mapping[str, Any]], dict[str, Any]] = nothing
    looked_at: tuple[str, ...] = ()
    tensors: tuple[str, ...] = (FACTORS,)
    partial: bool = False
    routed: Routed | None = None


SOFT_CAPS = {key: key for key in ("attn_logit_softcapping", "final_logit_softcapping")}
WINDOW = {"attention.sliding_window": "sliding_window"}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", "llama", permuted=True),
    "granite": Family(
        "GraniteForCausalLM",
        "granite",
        permuted=True,
        own={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", settings={"use_sliding_window": False}),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", settings={"use_sliding_window": False}),
    "olmo2": Family("Olmo2ForCausalLM", "olmo2"),
    # llama.cpp leaves out the rotation in every fourth layer; a file does not say so.
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        "smollm3",
        permuted=True,
        settings={"no_rope_layer_interval": 4, "use_sliding_window": False},
    ),
    "gemma": Family("GemmaForCausalLM", "gemma", settings={"hidden_act": "gelu_pytorch_tanh"}, norm_offset=1.0),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "gemma2",
        own=SOFT_CAPS | WINDOW,
        settings={"hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
        special=gemma2,
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        own={"final_logit_softcapping": "final_logit_softcapping"} | WINDOW,
        settings={"hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
        special=gemma3,
        looked_at=("attention.sliding_window_pattern", "rope.freq_base_swa"),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        "phi3",
        special=phi3,
        looked_at=("attention.sliding_window", "rope.scaling.attn_factor"),
        tensors=(LONG, SHORT),
        partial=True,
    ),
    # llama.cpp takes the weights of the chosen MLPs relative to their sum; a file does not say so.
    "qwen3moe": Family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        own={
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        settings={"norm_topk_prob": True, "use_sliding_window": False},
        routed=Routed("mlp", "gate_proj", "up_proj", "down_proj"),
    ),
}
"""By llama.cpp's name. Mistral and SmolLM2 models are converted as `llama`."""

MIXTRAL = Family(
    "MixtralForCausalLM",
    "mixtral",
    permuted=True,
    own={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    settings={"sliding_window": None},
    routed=Routed("block_sparse_moe", "w1", "w3", "w2"),
)
"""What `llama` is if it has several MLPs in a layer."""


def family_of(metadata: Metadata) -> Family:
    """The file's family.

    Raises:
        CheckpointError: its architecture is not among `FAMILIES`.
    """
    found = FAMILIES.get(metadata.architecture)
    if found is None:
        raise CheckpointError(
            f"{metadata.file} has the architecture {metadata.architecture!r}; GGUF files of {', '.join(FAMILIES)} can "
            "be read: give the Hugging Face checkpoint"
        )
    return MIXTRAL if metadata.architecture == "llama" and metadata.own().get("expert_count") else found


def config_of(metadata: Metadata) -> dict[str, Any]:
    """The config.json of the model in a file, without its dtype.

    Raises:
        CheckpointError: the architecture or one of its keys is not known, or a key is missing.
    """
    family, own = family_of(metadata), metadata.own()
    names = COMMON | dict(family.own)
    unknown = sorted(set(own) - set(names) - {*UNDERSTOOD, *family.looked_at})
    if unknown:
        raise CheckpointError(
            f"{metadata.file} has the settings {', '.join(unknown)}, which are not supported for GGUF files of "
            f"{metadata.architecture}: give the Hugging Face checkpoint"
        )
    optional = {"attention.head_count_kv", "attention.key_length", *family.own}
    missing = sorted(key for key in names if key not in own and key not in optional)
    if missing or "token_embd.weight" not in metadata.tensors:
        lacking = [f"{metadata.architecture}.{key}" for key in missing] or ["token_embd.weight"]
        raise CheckpointError(f"{metadata.file} lacks {', '.join(lacking)}")
    if own.get("expert_count") and family.routed is None:
        raise CheckpointError(f"{metadata.file} has routed experts, which are not supported for GGUF files")
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        **family.settings,
        **{names[key]: _rounded(value) for key, value in own.items() if key in names},
        "vocab_size": metadata.shape("token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in metadata.tensors,
    }
    heads = config["num_attention_heads"]
    if not isinstance(heads, int) or not isinstance(config.setdefault("num_key_value_heads", heads), int):
        raise CheckpointError(
            f"{metadata.file} has different numbers of heads in different layers, which is not supported"
        )
    width = config.setdefault("head_dim", config["hidden_size"] // heads)
    for key in ("attention.value_length", *(() if family.partial else ("rope.dimension_count",))):
        if own.get(key, width) != width:
            raise CheckpointError(f"{metadata.file}: {key} is {own[key]}, but must be {width}, the size of a head")
    config |= rope_parameters(metadata, width)
    config |= family.special(metadata, config)
    return config | _special_tokens(metadata)


def _special_tokens(metadata: Metadata) -> dict[str, Any]:
    values = metadata.values
    ends = [values[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in values]
    ends = list(dict.fromkeys(ends))
    found: dict[str, Any] = {"bos_token_id": values.get("tokenizer.ggml.bos_token_id")}
    found["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    found["pad_token_id"] = values.get("tokenizer.ggml.padding_token_id")
    return found


def _rounded(value: Any) -> Any:
    """A number without the digits that single precision has added."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
