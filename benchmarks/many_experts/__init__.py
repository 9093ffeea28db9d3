"""Many experts and many users on one engine: throughput, planning and waits by popularity.

The engine is stepped directly, without HTTP, tokenizer and router, so that the figures are the engine's alone.
"""
