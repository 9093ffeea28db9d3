"""Tests of merge.check."""
