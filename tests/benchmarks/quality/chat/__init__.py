"""Tests of benchmarks.quality.chat."""
