"""Tests, mirroring the packages one to one."""
