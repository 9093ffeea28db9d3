"""Does a fine-tune's config.json compute the same as the base's?"""

from collections.abc import Mapping
from typing import Any

from merge.check.finding import Finding, errors, warnings
from merge.check.normal_form import normal_forms
from merge.checkpoint import Checkpoint

COMPUTING = frozenset({
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "tie_word_embeddings", "hidden_act", "hidden_activation", "activation_function",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "sliding_window",
    "use_sliding_window", "layer_types", "partial_rotary_factor", "attention_bias", "mlp_bias", "num_experts",
    "num_local_experts", "num_experts_per_tok", "n_embd", "n_head", "n_layer", "n_inner", "d_model", "d_kv", "d_ff",
    "num_layers", "num_heads", "num_decoder_layers", "relative_attention_num_buckets", "feed_forward_proj",
    "position_embedding_type", "type_vocab_size", "image_size", "patch_size", "num_channels", "projection_dim",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "final_logit_softcapping",
    "attn_logit_softcapping", "query_pre_attn_scalar", "scale_embedding", "no_rope_layers", "norm_topk_prob",
    "moe_intermediate_size", "shared_intermediate_size", "decoder_sparse_step", "mlp_only_layers",
    "use_bidirectional_attention", "original_max_position_embeddings",
})  # fmt: skip
"""Fields that change what the same weights compute. Not `vocab_size`, which the shapes of the merged tensors tell."""

SILENT = frozenset({
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "architectures", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "_attn_implementation",
    "gradient_checkpointing", "unsloth_version", "unsloth_fixed", "pretraining_tp", "output_attentions",
    "output_hidden_states", "return_dict", "chunk_size_feed_forward", "initializer_range", "attention_dropout",
    "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "router_aux_loss_coef", "output_router_logits", "pad_token_id",
})  # fmt: skip
"""Fields that change nothing about the merged tensors or about serving: records, training, and what belongs to a
head."""

ELSEWHERE = frozenset({"eos_token_id"})
"""Fields that are compared together with generation_config.json."""


def compare_settings(base: Checkpoint, fine_tune: Checkpoint, subject: str) -> list[Finding]:
    """Compare what the two config.json files mean, whichever version of transformers wrote them.

    What changes the computation is an error, everything else a warning: the backbone gets the base's config.
    """
    ours, theirs = normal_forms(base.config, fine_tune.config)
    wrong, odd = [], []
    for key in sorted(ours | theirs):
        parts = key.split(".")
        if ours.get(key) == theirs.get(key) or (SILENT | ELSEWHERE) & set(parts):
            continue
        text = f"{fine_tune.path}: config.json: {key} is {_said(theirs, key)}, the base's is {_said(ours, key)}"
        scaled = "rope_parameters" in parts and parts[-1] != "rope_theta"  # absent is a value here, too
        if scaled or (parts[-1] in COMPUTING and key in ours and key in theirs):
            wrong.append(f"{text}: the same weights then compute a different function")
        else:
            odd.append(f"{text}; the backbone gets the base's")
    return errors(subject, wrong) + warnings(subject, odd)


def _said(fields: Mapping[str, Any], key: str) -> str:
    return repr(fields[key]) if key in fields else "not there"
