"""The error of this package."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, unsafe or does not fit. The message is one line."""
