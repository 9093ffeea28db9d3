"""The zoo's architecture and tokenizer (one token a character), and how its checkpoints are written."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_SPECIAL = (PAD, BOS, EOS, UNK)
_CHARACTERS = ("\n", *(chr(code) for code in range(0x20, 0x7F)))

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- message['content'] }}
{%- elif message['role'] == 'assistant' %}
{{- '\\n' + message['content'] + eos_token }}
{%- else %}
{{- raise_exception('the zoo models take user and assistant messages only') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '\\n' }}
{%- endif %}"""
"""A user message is its content, an assistant message is newline + content + `<eos>`.

The generation prompt is the newline that a completion would begin with, so that a chat's reply is the
bare answer.
"""


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer; any character outside printable ASCII and the newline becomes `<unk>`.

    Encoding prepends `<bos>`.

    Args:
        max_length: The model's context length in tokens, recorded in the tokenizer's configuration.
    """
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


MAX_LENGTH = 256
"""Context length in tokens."""


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Build a freshly initialised fp32 Llama of 1.35 M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model


def save_checkpoint(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a Hugging Face directory with bf16 weights.

    Args:
        path: The directory; it is created if it does not exist.
        model: The model, of any floating dtype; it is left as it is.
        tokenizer: Is written beside the weights.
    """
    stored = LlamaForCausalLM(model.config).bfloat16()
    stored.load_state_dict(model.state_dict())
    stored.generation_config = model.generation_config
    stored.save_pretrained(path)
    tokenizer.save_pretrained(path)
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    # The class's name in transformers 4 and 5; what 5 writes, 4 does not know.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for file in path.iterdir():
        # The weights come from a temporary file, readable by this user only.
        file.chmod(0o644)
