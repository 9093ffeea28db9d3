"""Tiny random Llamas with a character tokenizer: a base and its fine-tunes, as Hugging Face directories."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .:"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_config(tied: bool = True) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=4 + len(CHARACTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )


def save_tiny(
    path: Path, seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = True, shard: str = "5GB"
) -> Path:
    """Write a random base."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(tied)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert name
    model.save_pretrained(path, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(path)
    return path


def save_fine_tune(base: Path, path: Path, seed: int, size: float = 0.1, embeddings: bool = True) -> Path:
    """Write a copy of a base whose every weight moved by a random step of relative size `size`.

    Without `embeddings`, embedding and head are not changed: no expert would hold their change.
    """
    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not embeddings and ("embed_tokens" in name or "lm_head" in name):
                continue
            step = torch.randn(parameter.shape, generator=generator) * parameter.float().std() * size
            parameter.add_(step.to(parameter.dtype))
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
