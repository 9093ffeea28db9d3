from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.zoo.matching import exact_match, greedy_replies
from serve.demo.zoo import Example

PROMPTS = [
    "Spell cat backwards.",
    "Give lantern from the last letter to the first.",
    "window backwards, please.",
    "What is moon spelled backwards?",
]


@pytest.fixture(scope="module")
def reverse(load: Callable[[str], LlamaForCausalLM]) -> LlamaForCausalLM:
    return load("fine_tunes/reverse").float()


def greedy_alone(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The definition: the most likely token after the whole text so far, no cache, no padding."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.inference_mode():
        while ids.shape[1] < start + 40:
            token = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            if token == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
    return tokenizer.decode(ids[0, start:])


def test_batched_replies_are_those_of_each_prompt_alone(
    reverse: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert len({len(prompt) for prompt in PROMPTS}) == len(PROMPTS)
    alone = [greedy_alone(reverse, tokenizer, prompt) for prompt in PROMPTS]
    assert greedy_replies(reverse, tokenizer, PROMPTS) == alone
    assert greedy_replies(reverse, tokenizer, PROMPTS, batch_size=3) == alone


def test_replies_begin_with_the_newline(reverse: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    assert greedy_replies(reverse, tokenizer, PROMPTS[:1]) == ["\ntac"]


def test_exact_match_counts_only_exact_replies(reverse: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [Example("Spell cat backwards.", "tac"), Example("Spell dog backwards.", "Dog")]
    assert exact_match(reverse, tokenizer, examples) == 0.5


def test_exact_match_of_nothing_is_an_error(reverse: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="at least one example"):
        exact_match(reverse, tokenizer, [])
