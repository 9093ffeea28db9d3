import json

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.peers.qwen2_gguf import metadata, tensor_name

CONFIG = Qwen2Config(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=61,
    max_position_embeddings=640,
)


def test_the_settings_of_a_model_as_it_is_saved(tmp_path):
    Qwen2ForCausalLM(CONFIG).save_pretrained(tmp_path)
    found = metadata(json.loads((tmp_path / "config.json").read_text()))
    assert found == {
        "qwen2.vocab_size": 61,
        "qwen2.context_length": 640,
        "qwen2.embedding_length": 32,
        "qwen2.block_count": 2,
        "qwen2.feed_forward_length": 48,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen2.rope.freq_base": 10_000.0,
    }


def test_every_tensor_has_a_name_of_its_own():
    names = [name for name, _ in Qwen2ForCausalLM(CONFIG).named_parameters()]
    found = {tensor_name(name) for name in names}
    assert len(found) == len(names)
    assert {
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
        "blk.0.attn_q.bias",
        "blk.1.ffn_down.weight",
    } <= found


def test_a_tensor_that_gguf_has_no_name_for_is_an_error():
    with pytest.raises(KeyError, match="mlp.router"):
        tensor_name("model.layers.0.mlp.router.weight")
