"""What a bundle's backbone must be, so that `overtone serve` can run it."""

SERVED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "Phi3ForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
)
"""Values of config.json's `architectures` that the decoder in `serve` implements."""
