"""What is recorded about a zoo: how well its stored checkpoints do, and how far apart they are."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.zoo.matching import exact_match
from serve.demo.tiny import models_dir
from serve.demo.zoo.task import Task

HELD_OUT_SHARE = 3
"""One evaluation prompt in this many is worded in a held-out phrasing."""

_ELSEWHERE = 12
"""Prompts of each other task that a fine-tune is tried on."""


def metrics() -> dict[str, Any]:
    """Return what was measured when the shipped models were trained (`metrics.json`)."""
    recorded: dict[str, Any] = json.loads((models_dir().parent / "metrics.json").read_text(encoding="utf-8"))
    return recorded


def measure(
    models: Path, tasks: Sequence[Task], count: int, seed: int, on_task: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure the stored bf16 checkpoints on test contents.

    Args:
        models: A folder with `base/` and `fine_tunes/<task>/`.
        tasks: Which fine-tunes to measure; the plain average is theirs.
        count: Prompts a task, a third of them in held-out phrasings.
        seed: Of the prompts.
        on_task: Called with a task's name once it is measured.

    Returns:
        `tasks`: for each, `fine_tune` (exact match on `training_phrasings`, `held_out_phrasings`, `all`),
        `base`, `plain_average`, `prompts` (how many of each kind), `relative_norm` (‖τ‖ / ‖θ₀‖ over all
        parameters) and `elsewhere` (the fine-tune's mean exact match on the other tasks); `mean` over
        the tasks; `seed` of the prompts; `parameters` of one model; `bytes` of all files.

    Raises:
        ValueError: `count` is below 3, or there is no task.
    """
    if count < HELD_OUT_SHARE or not tasks:
        raise ValueError(f"measuring needs a task and at least {HELD_OUT_SHARE} prompts, not {len(tasks)} and {count}")
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    base = _load(models / "base")
    fine_tunes = {task.name: _load(models / "fine_tunes" / task.name) for task in tasks}
    average = _average(list(fine_tunes.values()))

    held_out = count // HELD_OUT_SHARE
    prompts = {task.name: task.generate("test", count - held_out, seed) for task in tasks}
    rewordings = {task.name: task.generate("test", held_out, seed, "held_out") for task in tasks}
    measured: dict[str, dict[str, Any]] = {}
    for task in tasks:
        known, new = prompts[task.name], rewordings[task.name]
        fine_tune = fine_tunes[task.name]
        on_known, on_new = exact_match(fine_tune, tokenizer, known), exact_match(fine_tune, tokenizer, new)
        others = [example for other in tasks if other is not task for example in prompts[other.name][:_ELSEWHERE]]
        measured[task.name] = {
            "fine_tune": {
                "training_phrasings": on_known,
                "held_out_phrasings": on_new,
                "all": (on_known * len(known) + on_new * len(new)) / count,
            },
            "base": exact_match(base, tokenizer, known + new),
            "plain_average": exact_match(average, tokenizer, known + new),
            "elsewhere": exact_match(fine_tune, tokenizer, others) if others else None,
            "relative_norm": _relative_norm(base, fine_tune),
            "prompts": {"training_phrasings": len(known), "held_out_phrasings": len(new)},
        }
        on_task(task.name)
    mean = {
        "fine_tune": _mean([row["fine_tune"]["all"] for row in measured.values()]),
        "held_out_phrasings": _mean([row["fine_tune"]["held_out_phrasings"] for row in measured.values()]),
        **{key: _mean([row[key] for row in measured.values()]) for key in ("base", "plain_average", "relative_norm")},
    }
    return {
        "tasks": measured,
        "mean": mean,
        "seed": seed,
        "parameters": base.num_parameters(),
        "bytes": sum(path.stat().st_size for path in models.rglob("*") if path.is_file()),
    }


def _load(path: Path) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    return model


def _average(models: Sequence[LlamaForCausalLM]) -> LlamaForCausalLM:
    states = [model.state_dict() for model in models]
    average = LlamaForCausalLM(models[0].config).bfloat16()
    average.train(False)
    average.generation_config = models[0].generation_config
    average.load_state_dict({key: torch.stack([s[key].float() for s in states]).mean(0) for key in states[0]})
    return average


def _relative_norm(base: LlamaForCausalLM, fine_tune: LlamaForCausalLM) -> float:
    start = torch.cat([parameter.detach().float().flatten() for parameter in base.parameters()])
    end = torch.cat([parameter.detach().float().flatten() for parameter in fine_tune.parameters()])
    return float((end - start).norm() / start.norm())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
