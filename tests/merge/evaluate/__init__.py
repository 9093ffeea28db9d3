"""Tests of merge.evaluate."""
