"""The errors of this package."""


class BundleError(ValueError):
    """A bundle, or a file of one, is missing, damaged or does not belong. The message is one line."""


class MissingFileError(BundleError):
    """A file is not there."""


class UnreadableFileError(BundleError):
    """A file is there and cannot be read: no permission, an I/O error, or another process writes to it."""


class BackboneMismatchError(BundleError):
    """An expert was cut against another backbone."""
