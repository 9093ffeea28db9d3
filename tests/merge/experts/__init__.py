"""Tests of merge.experts."""
