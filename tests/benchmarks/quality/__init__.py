"""Tests of benchmarks.quality."""
