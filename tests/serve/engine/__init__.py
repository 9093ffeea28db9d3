"""Tests of serve.engine."""
