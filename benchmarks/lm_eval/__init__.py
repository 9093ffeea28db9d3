"""EleutherAI's lm-eval against this server, through its `local-completions` client, on two tasks of the zoo.

It scores given answers by their log-probabilities (token-array prompts with `echo` and `logprobs`) and generates
others: a client that nobody here wrote reads every number. `tasks` writes the tasks down for it, `run` runs it.
"""

from benchmarks.lm_eval.run import LM_EVAL, evaluate

__all__ = ["LM_EVAL", "evaluate"]
