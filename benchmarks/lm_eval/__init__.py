"""EleutherAI's lm-eval against this server: its clients for completions and chats, on tasks of the zoo.

They score given answers by their log-probabilities (token-array prompts with `echo` and `logprobs`) and generate
others, so that independent clients read every number. `tasks` writes the tasks for it, and `run` runs it.
"""

from benchmarks.lm_eval.run import LM_EVAL, evaluate

__all__ = ["LM_EVAL", "evaluate"]
