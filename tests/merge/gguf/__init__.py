"""Tests of merge.gguf."""
