"""How well a bundle answers: exact match of the fine-tunes, the backbone, the named expert and the routed model.

`run` asks the questions and scores the replies, `engine` answers them, `table` is the result.
"""

from benchmarks.evaluation.ask import Ask, Question, Reply
from benchmarks.evaluation.run import evaluate
from benchmarks.evaluation.table import Evaluation, TaskScores

__all__ = ["Ask", "Evaluation", "Question", "Reply", "TaskScores", "evaluate"]
