"""Offline: checkpoints in, bundle out. Knows nothing of serving."""
