"""Greedy replies in batches, and how many of them are exactly right."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from serve.demo.zoo.task import Example

MAX_NEW_TOKENS = 40
"""Room for the longest answers (30 characters), its newline and `<eos>`."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread for a while.

    Steps of one token through so small a model gain nothing from a second thread, and on a busy machine
    waiting for it made them 60 times slower (measured).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
@torch.inference_mode()
def greedy_replies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int = 128
) -> list[str]:
    """Complete prompts greedily, in batches of similar length.

    Prompts of unequal length are padded on the left; the attention mask hides the padding and the
    position of a token counts from its own prompt's `<bos>`.

    Returns:
        One text a prompt, in their order, without special tokens; it begins with the newline.
    """
    generate: Callable[..., Tensor] = model.generate
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer([prompts[i] for i in chosen], padding=True, padding_side="left", return_tensors="pt")
        generated = generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        new_tokens = generated[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            replies[i] = text
    return replies


def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int = 128
) -> float:
    """Return the share of examples whose greedy reply, stripped, is the answer.

    Raises:
        ValueError: There are no examples.
    """
    if not examples:
        raise ValueError("exact match needs at least one example")
    replies = greedy_replies(model, tokenizer, [example.prompt for example in examples], batch_size)
    hits = sum(reply.strip() == example.answer for reply, example in zip(replies, examples, strict=True))
    return hits / len(examples)
