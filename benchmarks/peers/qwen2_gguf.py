"""What GGUF calls the settings and the tensors of a Qwen2 model, by the names that transformers has for them.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Mapping
from typing import Any

ARCHITECTURE = "qwen2"

SETTINGS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}

TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def metadata(config: Mapping[str, Any]) -> dict[str, int | float]:
    """The settings of a `config.json`.

    Raises:
        KeyError: one is missing.
    """
    found = {f"{ARCHITECTURE}.{name}": config[key] for key, name in SETTINGS.items()}
    return {**found, f"{ARCHITECTURE}.rope.freq_base": float(config["rope_parameters"]["rope_theta"])}


def tensor_name(name: str) -> str:
    """The name of a tensor: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`.

    Raises:
        KeyError: GGUF has none for it.
    """
    module, _, kind = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{TENSORS[module]}.{kind}"
    layer, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{TENSORS[part]}.{kind}"
