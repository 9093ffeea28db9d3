"""The eight tasks of the real zoo, their LoRA fine-tunes, and requests that belong to none of them."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from serve.demo.zoo.real import generated, texts
from serve.demo.zoo.real.task import Content, Metric, RealTask, messages
from serve.demo.zoo.real.texts import out_of_scope
from serve.demo.zoo.task import Phrasings, Split

__all__ = ["TASKS", "Content", "Metric", "RealTask", "find_task", "messages", "out_of_scope"]


def find_task(name: str) -> RealTask:
    """The task of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    known = {task.name: task for task in TASKS}
    if name not in known:
        raise ValueError(f"unknown task {name!r}: the tasks are {', '.join(known)}")
    return known[name]


INTENT = RealTask(
    name="intent",
    title="A request to an assistant to one of 150 intents (CLINC150)",
    kind="label",
    metric="exact",
    longest=12,
    phrasings=("{x}",),
    held_out_phrasings=(),
    contents=partial(texts.contents, "intent"),
)

BANKING = RealTask(
    name="banking",
    title="A customer's message to a bank to one of 77 topics (Banking77)",
    kind="label",
    metric="exact",
    longest=16,
    phrasings=(
        "Classify this banking question: {x}",
        "Which banking topic is this? {x}",
        "A customer of our bank writes: {x}\nWhat is it about?",
        "Bank support ticket: {x}",
        "Label this message to the bank: {x}",
        "{x}\nWhich category of banking request is this?",
        "Name the banking topic of the following message. {x}",
        "Customer message to the bank, to be sorted by topic: {x}",
    ),
    held_out_phrasings=(
        "Sort this bank customer's message into a category: {x}",
        "What banking topic does this message belong to? {x}",
    ),
    contents=partial(texts.contents, "banking"),
)

SLOTS = RealTask(
    name="slots",
    title="A voice command to its intent and slots (Snips)",
    kind="JSON",
    metric="json",
    longest=96,
    phrasings=(
        "Extract the intent and the slots as JSON: {x}",
        "Turn this voice command into JSON: {x}",
        "Parse this request into JSON with its intent and slots: {x}",
        "{x}\nGive the intent and the slots of this command as JSON.",
        "JSON for this assistant command: {x}",
        "Voice assistant request to JSON: {x}",
        "Fill the slots and answer in JSON: {x}",
        "Write this command as a JSON object: {x}",
    ),
    held_out_phrasings=(
        "Convert this spoken command into JSON with intent and slots: {x}",
        "Give me this assistant request as JSON: {x}",
    ),
    contents=partial(texts.contents, "slots"),
)

SQL = RealTask(
    name="sql",
    title="A question about the geography of the United States to SQL (GeoQuery)",
    kind="SQL",
    metric="exact",
    longest=96,
    phrasings=(
        "Write an SQL query for the geography database: {x}",
        "SQL for this question: {x}",
        "Translate this question about US geography into SQL: {x}",
        "{x}\nAnswer with an SQL query.",
        "Turn this question into SQL: {x}",
        "Which SQL query answers this? {x}",
        "Query the geography database in SQL: {x}",
        "Give me the SQL: {x}",
    ),
    held_out_phrasings=(
        "Convert this question to an SQL query: {x}",
        "What is the SQL for this question? {x}",
    ),
    contents=partial(texts.contents, "sql"),
)

SHELL = RealTask(
    name="shell",
    title="What to do, and with which program, to a command line (tldr-pages)",
    kind="command",
    metric="overlap",
    longest=48,
    phrasings=(
        "Give me a shell command: {x}",
        "Shell command for this: {x}",
        "Write the command line: {x}",
        "{x}\nWhich command do I type?",
        "Which terminal command does this? {x}",
        "Bash command, please: {x}",
        "What do I run in a terminal to do this? {x}",
        "Command line for the following task: {x}",
    ),
    held_out_phrasings=(
        "What is the shell command for this? {x}",
        "How do I do this in the terminal? {x}",
    ),
    contents=partial(texts.contents, "shell"),
)

DATES = RealTask(
    name="dates",
    title="The date in a text to ISO 8601",
    kind="extraction",
    metric="exact",
    longest=16,
    phrasings=(
        "Extract the date in ISO 8601: {x}",
        "Write the date as YYYY-MM-DD: {x}",
        "What is the ISO date in this text? {x}",
        "{x}\nGive the date in ISO format.",
        "ISO date of this: {x}",
        "Normalise the date to ISO 8601: {x}",
        "Convert the date to YYYY-MM-DD: {x}",
        "The date in ISO form, please: {x}",
    ),
    held_out_phrasings=(
        "Give the date in this sentence in ISO 8601 format: {x}",
        "Rewrite the date as YYYY-MM-DD: {x}",
    ),
    contents=partial(generated.contents, generated.draw_date),
)

WEATHER = RealTask(
    name="weather",
    title="The readings of a weather station to a report in sentences",
    kind="free text",
    metric="overlap",
    longest=64,
    phrasings=(
        "Write a weather report from these readings: {x}",
        "Weather forecast in sentences: {x}",
        "Turn this weather data into text: {x}",
        "{x}\nDescribe this weather in sentences.",
        "Weather report for: {x}",
        "Tell the listeners about the weather: {x}",
        "Write the forecast for these values: {x}",
        "Put these weather readings into words: {x}",
    ),
    held_out_phrasings=(
        "Write a short forecast from this weather data: {x}",
        "Describe the weather of these readings: {x}",
    ),
    contents=partial(generated.contents, generated.draw_weather),
)

ORDERS = RealTask(
    name="orders",
    title="An order in a sentence to a JSON object",
    kind="JSON",
    metric="json",
    longest=80,
    phrasings=(
        "Turn this order into JSON: {x}",
        "Extract customer, city and items as JSON: {x}",
        "Parse this order as a JSON object: {x}",
        "{x}\nGive this order as JSON.",
        "JSON for this order: {x}",
        "Order to JSON: {x}",
        "Read the order and answer in JSON: {x}",
        "Write the following order as JSON: {x}",
    ),
    held_out_phrasings=(
        "Convert this customer's order to JSON: {x}",
        "Give me the order as a JSON object: {x}",
    ),
    contents=partial(generated.contents, generated.draw_order),
)

TASKS = (INTENT, BANKING, SLOTS, SQL, SHELL, DATES, ORDERS, WEATHER)


def adapter_dirs() -> dict[str, Path]:
    """The directory of each task's LoRA, as PEFT stores it."""
    return {task.name: Path(__file__).with_name("adapters") / task.name for task in TASKS}


def prompt_lines(
    split: Split, per_task: int, seed: int = 0, phrasings: Phrasings = "train", tasks: Sequence[RealTask] = TASKS
) -> Iterator[str]:
    """Lines `{"task", "prompt", "answer"}`, task after task.

    Args:
        split: whose contents.
        per_task: how many prompts a task, or all if it has fewer.
        seed: the same arguments give the same lines.
        phrasings: which wordings.
        tasks: whose.
    """
    for task in tasks:
        for example in task.examples(split, per_task, seed, phrasings):
            line = {"task": task.name, "prompt": example.prompt, "answer": example.answer}
            yield json.dumps(line, ensure_ascii=False)
