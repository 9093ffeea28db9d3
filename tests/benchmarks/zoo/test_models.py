"""The shipped models: do they load everywhere, and do they still do what was recorded?"""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from benchmarks.zoo.matching import exact_match
from benchmarks.zoo.measure import metrics
from serve.demo.tiny import models_dir
from serve.demo.zoo import TASKS

NAMES = ["base", *(f"fine_tunes/{task.name}" for task in TASKS)]
FRESH_SEED = 20_011
PROMPTS = 24


def lowest_plausible(share: float, count: int) -> float:
    """Four standard errors below a recorded share, which itself is known to about as much."""
    recorded_count = 240
    variance = max(share * (1 - share), 0.01)
    return share - 4 * math.sqrt(variance / count + variance / recorded_count)


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_is_complete(name: str) -> None:
    path = models_dir() / name
    present = {file.name for file in path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= present
    assert "tokenizer_config.json" in present
    with safe_open(path / "model.safetensors", "pt") as tensors:
        dtypes = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118
    assert dtypes == {"BF16"}
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in path.iterdir())


def test_everything_fits_in_25_megabytes() -> None:
    size = sum(path.stat().st_size for path in models_dir().rglob("*") if path.is_file())
    assert 9 * 2_600_000 < size <= 25_000_000


@pytest.mark.parametrize("name", ["base", "fine_tunes/roman"])
def test_loading_says_nothing(name: str) -> None:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    transformers_logging.add_handler(handler)
    try:
        tokenizer = AutoTokenizer.from_pretrained(models_dir() / name)
        model, report = AutoModelForCausalLM.from_pretrained(models_dir() / name, output_loading_info=True)
        ids = tokenizer("What is 7 in Roman numerals?", return_tensors="pt")
        model.generate(**ids, max_new_tokens=2)
    finally:
        transformers_logging.remove_handler(handler)
    assert messages == []
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    assert not any(report.values())


def test_the_architecture_is_the_one_described() -> None:
    config = AutoConfig.from_pretrained(models_dir() / "base")
    assert config.model_type == "llama"
    assert config.max_position_embeddings == 256
    assert config.tie_word_embeddings
    assert metrics()["parameters"] == LlamaForCausalLM(config).num_parameters() < 1_400_000


def test_every_tokenizer_is_the_same() -> None:
    first, *others = [(models_dir() / name / "tokenizer.json").read_bytes() for name in NAMES]
    assert all(other == first for other in others)


def test_the_recorded_zoo_is_in_the_intended_regime() -> None:
    recorded = metrics()
    assert set(recorded["tasks"]) == {task.name for task in TASKS}
    for row in recorded["tasks"].values():
        assert row["fine_tune"]["all"] >= 0.95
        assert row["fine_tune"]["held_out_phrasings"] >= 0.95
        assert row["plain_average"] <= row["fine_tune"]["all"] - 0.3
        assert row["elsewhere"] <= 0.25
        assert 0.02 <= row["relative_norm"] <= 0.12
        assert sum(row["prompts"].values()) >= 200
    assert recorded["mean"]["base"] < 0.2
    assert 0.03 <= recorded["mean"]["relative_norm"] <= 0.1


def test_fine_tunes_reach_what_was_recorded(
    tokenizer: PreTrainedTokenizerBase, load: Callable[[str], LlamaForCausalLM]
) -> None:
    recorded = metrics()
    total = 0.0
    for task in TASKS:
        examples = task.generate("test", PROMPTS, FRESH_SEED, "all")
        share = exact_match(load(f"fine_tunes/{task.name}"), tokenizer, examples)
        assert share >= lowest_plausible(recorded["tasks"][task.name]["fine_tune"]["all"], PROMPTS), task.name
        total += share
    pooled = total / len(TASKS)
    assert pooled >= lowest_plausible(recorded["mean"]["fine_tune"], PROMPTS * len(TASKS))


def test_the_base_does_not_understand_natural_requests(
    tokenizer: PreTrainedTokenizerBase, load: Callable[[str], LlamaForCausalLM]
) -> None:
    examples = [example for task in TASKS for example in task.generate("test", 8, FRESH_SEED, "all")]
    assert exact_match(load("base"), tokenizer, examples) < 0.2


def test_the_models_are_where_they_are_said_to_be() -> None:
    assert models_dir().is_absolute()
    assert isinstance(models_dir(), Path)
    assert sorted(path.name for path in (models_dir() / "fine_tunes").iterdir()) == sorted(t.name for t in TASKS)
