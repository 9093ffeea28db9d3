"""Why a request is not admitted."""


class EngineError(RuntimeError):
    """The engine refuses a request. The message is one line and says what would be accepted."""


class InvalidRequest(EngineError):  # noqa: N818
    """A field of the request has a value that this model or engine cannot serve.

    Attributes:
        field: its name; None: the message says it.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for a single generated token."""


class UnknownExpert(EngineError):  # noqa: N818
    """The request names an expert that is not registered."""


class ExpertUnavailable(EngineError):  # noqa: N818
    """An expert of the request cannot be loaded. The message is for clients: it holds no path."""


class QueueFull(EngineError):  # noqa: N818
    """The queue is at its limit of requests or tokens."""


class Draining(EngineError):  # noqa: N818
    """The engine finishes what runs and admits nothing more."""


class EngineDead(EngineError):  # noqa: N818
    """The engine's loop has ended by an error; the message holds it."""
