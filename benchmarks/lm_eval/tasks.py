"""Tasks of the zoo in lm-eval's own format: a YAML file and the examples as JSON lines."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve.demo.zoo.task import Task
from serve.demo.zoo.tasks import TASKS

PROBLEMS = (
    ("def add(a, b):", "Return the sum of a and b.", "a + b"),
    ("def subtract(a, b):", "Return a minus b.", "a - b"),
    ("def multiply(a, b):", "Return the product of a and b.", "a * b"),
    ("def divide(a, b):", "Return a divided by b.", "a / b"),
    ("def square(x):", "Return the square of x.", "x * x"),
    ("def double(x):", "Return twice x.", "x * 2"),
    ("def negate(x):", "Return x with its sign changed.", "-x"),
    ("def is_even(n):", "Return whether n is even.", "n % 2 == 0"),
    ("def is_odd(n):", "Return whether n is odd.", "n % 2 == 1"),
    ("def is_positive(x):", "Return whether x is greater than zero.", "x > 0"),
    ("def length(text):", "Return the number of characters in text.", "len(text)"),
    ("def upper(text):", "Return text in upper case.", "text.upper()"),
    ("def lower(text):", "Return text in lower case.", "text.lower()"),
    ("def first(items):", "Return the first of the items.", "items[0]"),
    ("def last(items):", "Return the last of the items.", "items[-1]"),
    ("def reverse(text):", "Return text backwards.", "text[::-1]"),
    ("def largest(numbers):", "Return the largest of the numbers.", "max(numbers)"),
    ("def smallest(numbers):", "Return the smallest of the numbers.", "min(numbers)"),
    ("def total(numbers):", "Return the sum of the numbers.", "sum(numbers)"),
    ("def words(text):", "Split text into words.", "text.split()"),
)
"""Head, docstring, and what the function returns."""


def code_documents(count: int) -> list[dict[str, str]]:
    """Up to `count` of the problems as prompts that end in `return`, with their answers."""
    return [
        {"prompt": f'{head}\n    """{told}"""\n    return', "answer": answer} for head, told, answer in PROBLEMS[:count]
    ]


CHOSEN, GENERATED = "roman", "reverse"
"""The task whose answers are chosen by log-likelihood, and the one whose answers are generated."""

CODE = "code"

CODE_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""The stop strings of lm-eval's `humaneval`; a client that asks one at a time adds the end token as the sixth."""

_FIRST_LINE = {"function": "regex", "regex_pattern": r"^[ ]*([^\n]*?)[ ]*(?:\n|$)"}

CHOICES = 4
MOST_TOKENS = 48
_GREEDY: Mapping[str, Any] = {"do_sample": False, "temperature": 0, "max_gen_toks": MOST_TOKENS}


@dataclass(frozen=True)
class TaskNames:
    """The names of the tasks, by the client that is given them.

    Attributes:
        completions: for `local-completions`.
        chats: for `local-chat-completions`, which has no log-probabilities of given answers.
    """

    completions: tuple[str, ...]
    chats: tuple[str, ...]


def write_tasks(directory: Path, count: int, seed: int = 0) -> TaskNames:
    """Write the tasks with up to `count` prompts each: chosen, generated, code with `humaneval`'s stops, chats."""
    by_name = {task.name: task for task in TASKS}
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    generation = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {**_GREEDY, "until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    code: dict[str, Any] = {
        **generation,
        "generation_kwargs": {**_GREEDY, "until": [*CODE_STOPS]},
        "doc_to_text": "{{prompt}}",
        "filter_list": [{"name": "first_line", "filter": [_FIRST_LINE, {"function": "take_first"}]}],
    }
    answers = _answers(by_name[GENERATED], count, seed)
    return TaskNames(
        completions=(
            _write(directory, f"zoo_{CHOSEN}_chosen", _choices(by_name[CHOSEN], count, seed), choice),
            _write(directory, f"zoo_{GENERATED}_generated", answers, generation),
            _write(directory, CODE, code_documents(count), code),
        ),
        # The chat template ends the prompt with the line feed.
        chats=(_write(directory, f"zoo_{GENERATED}_chat", answers, {**generation, "doc_to_text": "{{prompt}}"}),),
    )


def _choices(task: Task, count: int, seed: int) -> list[dict[str, Any]]:
    """Each example with its answer among those of others."""
    examples, rng, documents = task.generate("test", count, seed, "held_out"), random.Random(seed), []
    answers = sorted({example.answer for example in examples})
    for example in examples:
        others = rng.sample([answer for answer in answers if answer != example.answer], CHOICES - 1)
        choices = rng.sample([example.answer, *others], CHOICES)
        documents.append({"prompt": example.prompt, "choices": choices, "gold": choices.index(example.answer)})
    return documents


def _answers(task: Task, count: int, seed: int) -> list[dict[str, Any]]:
    return [{"prompt": e.prompt, "answer": e.answer} for e in task.generate("test", count, seed, "held_out")]


def _write(directory: Path, name: str, documents: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    examples = directory / f"{name}.jsonl"
    examples.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(examples)}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}\n",
        "target_delimiter": "",
        **settings,
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return name
