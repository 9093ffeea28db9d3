"""How the fine-tunes of the real zoo, which `overtone demo` serves, are trained and measured.

`train` makes them in the cache directory, `evaluate` measures them, and `prompts` prints labelled prompts.
"""
