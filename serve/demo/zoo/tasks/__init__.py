"""The zoo's tasks and their registry."""

from serve.demo.zoo.task import Task
from serve.demo.zoo.tasks.values import DATES, JSON, ROMAN
from serve.demo.zoo.tasks.words import CAMEL, REVERSE, SHIFT, SLUG, SORT

TASKS: tuple[Task, ...] = (DATES, ROMAN, JSON, SLUG, SORT, REVERSE, SHIFT, CAMEL)

__all__ = ["TASKS"]
