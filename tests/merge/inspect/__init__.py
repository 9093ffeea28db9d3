"""Tests of merge.inspect."""
