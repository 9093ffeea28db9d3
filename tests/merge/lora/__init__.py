"""Tests of merge.lora."""
