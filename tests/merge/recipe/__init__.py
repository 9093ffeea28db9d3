"""Tests of merge.recipe."""
