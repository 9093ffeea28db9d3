"""A tiny random model of each family, with what is odd about it."""

from typing import Any

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 4.0, 9.0],
    "partial_rotary_factor": 0.75,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]

GRANITE4 = {
    "layer_types": ["full_attention"] * 3,
    "num_local_experts": 0,
    "shared_intermediate_size": 40,
    "position_embedding_type": "rope",
    "mamba_n_heads": 4,
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.3,
    "logits_scaling": 0.5,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3, windows": (
        "smollm3",
        {"no_rope_layers": [0, 1, 1, 1], "use_sliding_window": True, "sliding_window": 5, "mlp_bias": True},
    ),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64, "max_position_embeddings": 64},
    ),
    "phi3, window": ("phi3", {"sliding_window": 7, "num_key_value_heads": 6, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.22,
            "logits_scaling": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "granite4": ("granite4", GRANITE4),
    "granite4, no positions": ("granite4", {**GRANITE4, "position_embedding_type": None, "attention_bias": True}),
    "olmo2": ("olmo2", {"num_key_value_heads": 6, "attention_bias": True}),
    "olmo3": (
        "olmo3",
        {
            "layer_types": KINDS,
            "sliding_window": 6,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN},
        },
    ),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 5,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": (
        "gemma3",
        {
            "layer_types": KINDS,
            "sliding_window": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": PLAIN,
            },
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe, weights as they are": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "decoder_sparse_step": 3},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": 9}),
}
"""Families and their settings, by what a test is called."""
