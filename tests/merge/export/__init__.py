"""Tests of merge.export."""
