"""config.json of widely used models, as published: the fields that say what is computed.

Lists of longrope's factors have their lengths only, for their values decide nothing about how they are read.
"""

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
PHI = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "hidden_act": "silu",
    "num_hidden_layers": 32, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
LONGROPE = {"type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.0] * 48}
GRANITE = {
    "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_bias": False, "mlp_bias": False,
    "hidden_act": "silu", "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "max_position_embeddings": 131072,
    "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
OLMO = {
    "hidden_act": "silu", "attention_bias": False, "rms_norm_eps": 1e-06, "rope_theta": 500000,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
GEMMA = {
    "attention_bias": False, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "torch_dtype": "bfloat16", "vocab_size": 256000,
}  # fmt: skip
GEMMA2 = {
    **GEMMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096,
}  # fmt: skip
GEMMA3 = {
    **GEMMA, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768,
    "num_attention_heads": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "vocab_size": 262144,
}  # fmt: skip
QWEN3 = {
    "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
QWEN3_MOE = {
    **QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8,
    "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "num_experts_per_tok": 2,
    "num_local_experts": 8, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "head_dim": 128, "hidden_act": "silu",
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 100000000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 131072, "max_position_embeddings": 32768,
}  # fmt: skip

SERVED: dict[str, dict[str, Any]] = {
    "SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 65536, "mlp_bias": False,
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 5000000.0, "sliding_window": None, "torch_dtype": "bfloat16", "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "Phi-3-mini-4k-instruct": {
        **PHI, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
        "rope_scaling": None, "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "Phi-3.5-mini-instruct": {
        **PHI, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "num_attention_heads": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
        "rope_scaling": LONGROPE, "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "Phi-4": {
        **PHI, "hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings": 16384,
        "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 10,
        "original_max_position_embeddings": 16384, "rope_scaling": None, "rope_theta": 250000, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 100352,
    },
    "Phi-4-mini-instruct": {
        **PHI, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "num_attention_heads": 24, "num_key_value_heads": 8, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "rope_scaling": LONGROPE, "sliding_window": 262144, "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
    "granite-3.3-8b-instruct": {
        **GRANITE, "attention_multiplier": 0.0078125, "hidden_size": 4096, "intermediate_size": 12800,
        "logits_scaling": 16.0, "rope_theta": 10000000.0, "vocab_size": 49159,
    },
    "granite-3.1-2b-instruct": {
        **GRANITE, "attention_multiplier": 0.015625, "hidden_size": 2048, "intermediate_size": 8192,
        "logits_scaling": 8.0, "rope_theta": 5000000.0, "vocab_size": 49155,
    },
    "granite-4.0-micro": {
        **GRANITE, "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid",
        "attention_multiplier": 0.015625, "hidden_size": 2560, "intermediate_size": 8192,
        "layer_types": ["attention"] * 40, "logits_scaling": 10.0, "num_attention_heads": 40, "num_experts_per_tok": 0,
        "num_local_experts": 0, "position_embedding_type": "rope", "rope_theta": 10000000,
        "shared_intermediate_size": 8192, "vocab_size": 100352,
    },
    "OLMo-2-1124-7B": {
        **OLMO, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_size": 4096,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "rope_scaling": None, "vocab_size": 100352,
    },
    "OLMo-2-0425-1B": {
        **OLMO, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 16, "num_hidden_layers": 16,
        "num_key_value_heads": 16, "rope_scaling": None, "vocab_size": 100352,
    },
    "Olmo-3-7B-Instruct": {
        **OLMO, "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "hidden_size": 4096,
        "intermediate_size": 11008, "max_position_embeddings": 65536, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "sliding_window": 4096, "vocab_size": 100278,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 8,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
    },
    "gemma-2b": {
        **GEMMA, "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu",
        "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "num_hidden_layers": 18,
        "num_key_value_heads": 1,
    },
    "gemma-7b": {
        **GEMMA, "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 3072, "intermediate_size": 24576, "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 16,
    },
    "gemma-2-2b-it": {
        **GEMMA2, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
    },
    "gemma-2-9b-it": {
        **GEMMA2, "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16, "num_hidden_layers": 42,
        "num_key_value_heads": 8, "query_pre_attn_scalar": 256,
    },
    "gemma-2-27b-it": {
        **GEMMA2, "head_dim": 128, "hidden_size": 4608, "intermediate_size": 36864, "num_attention_heads": 32,
        "num_hidden_layers": 46, "num_key_value_heads": 16, "query_pre_attn_scalar": 144,
    },
    "gemma-3-270m": {
        **GEMMA3, "_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 3, "use_bidirectional_attention": False,
    },
    "gemma-3-1b-it": {
        **GEMMA3, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "sliding_window_pattern": 6,
    },
    "Qwen3-4B": {
        **QWEN3, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2560,
        "intermediate_size": 9728, "max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 36,
        "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "Qwen3-4B-Instruct-2507": {
        **QWEN3, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2560,
        "intermediate_size": 9728, "max_position_embeddings": 262144, "max_window_layers": 36,
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rope_theta": 5000000,
        "tie_word_embeddings": True,
    },
    "Qwen3-30B-A3B": {
        **QWEN3_MOE, "hidden_size": 2048, "intermediate_size": 6144, "max_window_layers": 48,
        "moe_intermediate_size": 768, "num_attention_heads": 32, "num_hidden_layers": 48,
    },
    "Qwen3-235B-A22B": {
        **QWEN3_MOE, "hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 94,
        "moe_intermediate_size": 1536, "num_attention_heads": 64, "num_hidden_layers": 94,
    },
    "Mixtral-8x7B-Instruct-v0.1": {
        **MIXTRAL, "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000,
    },
    "Mixtral-8x22B-v0.1": {
        **MIXTRAL, "hidden_size": 6144, "intermediate_size": 16384, "max_position_embeddings": 65536,
        "num_attention_heads": 48, "num_hidden_layers": 56, "vocab_size": 32000,
    },
    "Ministral-8B-Instruct-2410": {
        **MISTRAL, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "sliding_window": 32768,
    },
    "Mistral-Small-24B-Instruct-2501": {
        **MISTRAL, "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40, "sliding_window": None,
    },
}  # fmt: skip

REFUSED: dict[str, dict[str, Any]] = {
    "gemma-3-4b-it": {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},
    "gemma-3n-E2B-it": {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n"},
    "embeddinggemma-300m": {"architectures": ["Gemma3TextModel"], "model_type": "gemma3_text"},
    "Ministral-3-8B-Instruct-2512": {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"},
    "Llama-4-Scout-17B-16E": {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4"},
    "Phi-3-small-8k-instruct": {"architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small"},
    "phi-2": {"architectures": ["PhiForCausalLM"], "model_type": "phi"},
    "OLMo-1B-hf": {"architectures": ["OlmoForCausalLM"], "model_type": "olmo"},
    "Qwen2.5-VL-7B-Instruct": {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"},
    "Qwen3-Next-80B-A3B": {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"},
    "gpt-oss-20b": {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"},
}
"""Models of other architectures, some of which are close to a served one."""
