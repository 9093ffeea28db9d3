"""The zoo's tasks, one a file, and their registry."""

from serve.demo.zoo.task import Task
from serve.demo.zoo.tasks.camel import CAMEL
from serve.demo.zoo.tasks.dates import DATES
from serve.demo.zoo.tasks.person_json import JSON
from serve.demo.zoo.tasks.reverse import REVERSE
from serve.demo.zoo.tasks.roman import ROMAN
from serve.demo.zoo.tasks.shift import SHIFT
from serve.demo.zoo.tasks.slug import SLUG
from serve.demo.zoo.tasks.sort import SORT

TASKS: tuple[Task, ...] = (DATES, ROMAN, JSON, SLUG, SORT, REVERSE, SHIFT, CAMEL)

__all__ = ["TASKS"]
