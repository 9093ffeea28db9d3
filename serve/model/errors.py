"""The error of this package."""


class ModelError(ValueError):
    """A model directory, or an expert for it, cannot be served. The message is one line."""
