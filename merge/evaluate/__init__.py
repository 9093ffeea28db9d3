"""Measuring a bundle, or a running server, on prompts with answers.

`lines` reads the prompts and `metrics` judges replies. `http` asks a server; `references` runs the base and the
fine-tunes, and `divergence` compares next-token distributions. `run` puts them together, `result` is what was found,
and `text` and `page` show it.
"""

from merge.evaluate.ask import Ask, Question, Reply
from merge.evaluate.http import Served, Server, ServerRefusedError
from merge.evaluate.lines import Line, check_tasks, read_data
from merge.evaluate.metrics import METRICS
from merge.evaluate.page import html_page
from merge.evaluate.references import References
from merge.evaluate.result import Answers, Evaluation, Routes, TaskResult
from merge.evaluate.run import evaluate, expert_size
from merge.evaluate.text import as_text

__all__ = [
    "METRICS",
    "Answers",
    "Ask",
    "Evaluation",
    "Line",
    "Question",
    "References",
    "Reply",
    "Routes",
    "Served",
    "Server",
    "ServerRefusedError",
    "TaskResult",
    "as_text",
    "check_tasks",
    "evaluate",
    "expert_size",
    "html_page",
    "read_data",
]
