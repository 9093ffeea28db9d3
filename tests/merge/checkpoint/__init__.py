"""Tests of merge.checkpoint."""
