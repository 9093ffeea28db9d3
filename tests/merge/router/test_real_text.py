"""The router on what people wrote: CLINC150, Banking77, Snips, GeoQuery and tldr-pages, unchanged."""

import random

import numpy as np
import pytest

from merge.bundle import RouterModel
from merge.router import RouterConfig, routing_quality, train_router
from serve.demo.zoo.real.tasks import find_task, out_of_scope

TASKS = ("banking", "intent", "shell", "slots", "sql")
"""Those whose requests people wrote; the contents stand alone, without a wording that would name the task."""

PROMPTS = 64
ASKED = 60


def texts(task: str, split: str, count: int) -> list[str]:
    contents = find_task(task).contents(split)  # type: ignore[arg-type]
    return random.Random(0).sample([content.text for content in contents], count)


@pytest.fixture(scope="module")
def router() -> RouterModel:
    return train_router({task: texts(task, "train", PROMPTS) for task in TASKS}, RouterConfig(features=("ngram",)))


def test_unseen_requests_find_their_expert(router: RouterModel) -> None:
    pairs = [(text, task) for task in TASKS for text in texts(task, "test", ASKED)]
    strangers = out_of_scope()[: 2 * ASKED]
    asked = [text for text, _ in pairs] + strangers
    labels = [task for _, task in pairs] + [None] * len(strangers)
    quality = routing_quality(router.names, router.probabilities_of(asked), labels, router.threshold)
    assert quality.accuracy >= 0.87
    assert quality.routed >= 0.85
    assert quality.auroc is not None
    assert quality.auroc >= 0.8
    assert quality.ece <= 0.1


def test_requests_that_name_their_task_find_it_in_held_out_wordings() -> None:
    tasks = [find_task(name) for name in ("banking", "dates", "orders", "shell", "slots", "sql", "weather")]
    prompts = {task.name: [item.prompt for item in task.examples("train", PROMPTS)] for task in tasks}
    router = train_router(prompts, RouterConfig(features=("ngram",)))
    asked = [(item.prompt, task.name) for task in tasks for item in task.examples("test", 40, 0, "held_out")]
    best = router.probabilities_of([prompt for prompt, _ in asked]).argmax(axis=1)
    right = np.array(router.names)[best] == np.array([name for _, name in asked])
    assert right.mean() >= 0.97
