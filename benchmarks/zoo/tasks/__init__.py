"""The zoo's tasks, one a file, and their registry."""

from benchmarks.zoo.task import Task
from benchmarks.zoo.tasks.camel import CAMEL
from benchmarks.zoo.tasks.dates import DATES
from benchmarks.zoo.tasks.person_json import JSON
from benchmarks.zoo.tasks.reverse import REVERSE
from benchmarks.zoo.tasks.roman import ROMAN
from benchmarks.zoo.tasks.shift import SHIFT
from benchmarks.zoo.tasks.slug import SLUG
from benchmarks.zoo.tasks.sort import SORT

TASKS: tuple[Task, ...] = (DATES, ROMAN, JSON, SLUG, SORT, REVERSE, SHIFT, CAMEL)

__all__ = ["TASKS"]
