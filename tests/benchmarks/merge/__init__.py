"""Tests of benchmarks.merge."""
