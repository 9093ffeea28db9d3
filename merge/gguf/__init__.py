"""GGUF files (llama.cpp's format) as inputs: each is converted once to a Hugging Face directory in the cache.

`metadata` reads a file with the package `gguf`, `families` makes config.json of what it says, `rope` the frequencies,
`special` what is not said as in config.json, `convert` writes the dequantised tensors under Hugging Face's names, and
`tokenizer` the tokenizer.
"""

from merge.gguf.convert import as_directory, convert

__all__ = ["as_directory", "convert"]
