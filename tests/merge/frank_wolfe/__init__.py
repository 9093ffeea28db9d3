"""Tests of merge.frank_wolfe."""
