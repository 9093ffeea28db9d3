"""What the parsers of tool calls have in common."""

from abc import ABC, abstractmethod
from collections.abc import Collection

from serve.api.messages.call_reader import CallReader
from serve.api.messages.events import CallDelta, Event


class CallParser(ABC):
    """Finds tool calls in a text that comes in pieces.

    What looks like a call and is not one stays text. Blanks around calls are left out, where there is no text.

    Args:
        names: of the tools that may be called without a tag; with one, the model may name any.
    """

    def __init__(self, names: Collection[str] = ()):
        self._names = frozenset(names)
        self._events: list[Event] = []
        self._buffer = ""
        self._blanks = ""
        self._fresh = True  # nothing but blanks since the beginning, or since the last call
        self._opening = ""
        self._reader: CallReader | None = None
        self.calls = 0

    def push(self, text: str) -> list[Event]:
        """Take a piece; what is certain by now."""
        self._buffer += text
        while self._step():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """The text has ended: what was held back."""
        while self._reader is not None and not self._reader.begun:
            self._give_up()
            while self._step():
                pass
        self._end()
        if not self.calls and self._fresh and self._blanks:
            self._events.append(self._blanks)
        events, self._events = self._events, []
        return events

    @abstractmethod
    def _step(self) -> bool:
        """Use up some of the buffer; whether there may be more to do."""

    @abstractmethod
    def _end(self) -> None:
        """Say what is left of the buffer, as far as it is text."""

    @abstractmethod
    def _called(self) -> None:
        """A call has ended."""

    @abstractmethod
    def _not_called(self) -> None:
        """What began like a call is text."""

    def _say(self, text: str) -> None:
        if not self._fresh:
            if text:
                self._events.append(text)
            return
        said = text.lstrip()
        self._blanks += text[: len(text) - len(said)]
        if said:
            self._events.append(said if self.calls else self._blanks + said)
            self._fresh, self._blanks = False, ""

    def _read(self, opening: str, tagged: bool, name: str | None = None) -> None:
        """Begin to read a call. `opening`: what stood before it, in case that it is not one."""
        self._opening = opening
        self._reader = CallReader(lambda called: self._begin(called, tagged), self._argue, name)

    def _begin(self, name: str, tagged: bool) -> bool:
        if not tagged and name not in self._names:
            return False
        self._events.append(CallDelta(self.calls, name))
        self.calls += 1
        self._fresh, self._blanks = True, ""
        return True

    def _argue(self, text: str) -> None:
        self._events.append(CallDelta(self.calls - 1, None, text))

    def _read_on(self) -> bool:
        """Let the call be read; whether it has ended."""
        assert self._reader is not None
        self._buffer = self._reader.push(self._buffer)
        if self._reader.failed:
            self._give_up()
            return True
        if self._reader.finished:
            self._reader = None
            self._called()
            return True
        return False

    def _give_up(self) -> None:
        """Go on behind the opening, so that it does not matter when it became clear that this is not a call."""
        assert self._reader is not None
        self._buffer = self._reader.raw + self._buffer
        self._reader = None
        self._say(self._opening)
        self._not_called()
