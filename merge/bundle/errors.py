"""The error of this package."""


class BundleError(ValueError):
    """A bundle, or a file of one, is missing, damaged or does not belong. The message is one line."""
