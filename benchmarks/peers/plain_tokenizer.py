"""`plain_tokenizer.py MODULE ...`: runs a module with the tokenizer that the model directory holds.

For some architectures transformers 5 builds the tokenizer of its own list from a model directory's vocabulary, whatever
tokenizer.json says. The benchmark's vocabulary of whole words then turns every prompt into no token at all.
"""

import runpy
import sys

from transformers.models.auto import tokenization_auto

if __name__ == "__main__":
    tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.discard("qwen2")
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
