"""Asking every prompt three ways and scoring the replies."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.evaluation.ask import Ask, Question
from benchmarks.evaluation.table import Evaluation, TaskScores
from benchmarks.zoo.matching import exact_match
from merge.bundle import Bundle
from merge.evaluate import expert_size
from serve.demo.zoo import Example


def evaluate(
    ask: Ask, bundle: Bundle, examples: Mapping[str, Sequence[Example]], fine_tunes: Mapping[str, Path]
) -> Evaluation:
    """Measure a bundle.

    Args:
        ask: how to reach it.
        bundle: what is behind `ask`, for the experts' sizes.
        examples: by task, as many for each; every task must be an expert of the bundle.
        fine_tunes: model directory of each task's fine-tune.

    Raises:
        ValueError: a task that the bundle has no expert for, or tasks with different numbers of examples.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # a bar for each fine-tune tells nobody anything
    missing = sorted(set(examples) - set(bundle.expert_names))
    if missing:
        raise ValueError(
            f"the bundle has no expert for {', '.join(missing)}; it holds {', '.join(bundle.expert_names)}"
        )
    counts = {len(prompts) for prompts in examples.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("every task needs the same number of examples, at least one")
    scores: dict[str, TaskScores] = {}
    routed_right = 0
    for task, prompts in examples.items():
        replies = {
            model: ask([Question(model, example.prompt) for example in prompts]) for model in ("backbone", task, "auto")
        }
        hits = {
            model: sum(reply.text.strip() == example.answer for reply, example in zip(answers, prompts, strict=True))
            for model, answers in replies.items()
        }
        routed_right += sum(reply.ran == task for reply in replies["auto"])
        scores[task] = TaskScores(
            fine_tune=_fine_tune_score(fine_tunes[task], prompts),
            backbone=hits["backbone"] / len(prompts),
            expert=hits[task] / len(prompts),
            routed=hits["auto"] / len(prompts),
        )
    density, bytes_fraction = expert_size(bundle)
    per_task = counts.pop()
    return Evaluation(scores, per_task, routed_right / (per_task * len(scores)), density, bytes_fraction)


def _fine_tune_score(directory: Path, examples: Sequence[Example]) -> float:
    model = LlamaForCausalLM.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return exact_match(model, tokenizer, examples)
