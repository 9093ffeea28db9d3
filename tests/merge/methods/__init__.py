"""Tests of merge.methods."""
