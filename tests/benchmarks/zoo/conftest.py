from collections.abc import Callable, Iterator

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.zoo.matching import one_thread
from serve.demo.tiny import models_dir


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(models_dir() / "base")


@pytest.fixture(scope="session")
def load() -> Callable[[str], LlamaForCausalLM]:
    def load(name: str) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(models_dir() / name, dtype="auto").eval()

    return load
