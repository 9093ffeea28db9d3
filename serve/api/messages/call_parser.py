"""What the parsers of tool calls have in common."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection

from serve.api.messages.call_reader import CallDelta, CallReader, Event, held_back

_BETWEEN = re.compile(r"[\s,]*")


class CallParser(ABC):
    """Finds tool calls in a text that comes in pieces.

    What looks like a call and is not one stays text. Blanks around calls are removed if there is no text.

    Args:
        names: of the tools that may be called without a tag; with one, the model may name any.
    """

    def __init__(self, names: Collection[str] = ()):
        self._names = frozenset(names)
        self._events: list[Event] = []
        self._buffer = ""
        self._blanks = ""
        self._fresh = True  # nothing but blanks since the beginning, or since the last call
        self._tag: str | None = None  # and blanks, behind which a call must begin
        self._listed = False  # further calls may follow in a list
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
        if self._reader is None and not self._formal():  # else it is arguments, or no text
            self._say((self._tag or "") + self._buffer)
        if not self.calls and self._fresh and self._blanks:
            self._events.append(self._blanks)
        events, self._events = self._events, []
        return events

    @abstractmethod
    def _step(self) -> bool:
        """Use up some of the buffer; whether there may be more to do."""

    @abstractmethod
    def _formal(self) -> bool:
        """Whether what is left of the buffer at the end is the form of calls, and no text."""

    def _called(self) -> None:
        """A call has ended."""
        return

    def _not_called(self) -> None:
        """What began like a call is text."""
        return

    def _look_for(self, tag: str) -> bool:
        """Say the text before a tag; whether it was found."""
        at = self._buffer.find(tag)
        if at >= 0:
            self._say(self._buffer[:at])
            self._tag, self._buffer = tag, self._buffer[at + len(tag) :]
            return True
        kept = len(self._buffer) - held_back(self._buffer, (tag,))
        self._say(self._buffer[:kept])
        self._buffer = self._buffer[kept:]
        return False

    def _behind_tag(self) -> str:
        """What follows the tag and its blanks, as far as it has arrived."""
        rest = self._buffer.lstrip()
        self._tag = (self._tag or "") + self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        return rest

    def _call(self, name: str | None = None, written: str = "") -> bool:
        """Read a call behind the tag; `written`: what stood between them."""
        opening, self._tag = (self._tag or "") + written, None
        self._read(opening, tagged=True, name=name)
        return True

    def _no_call(self) -> bool:
        """The tag is text."""
        tag, self._tag = self._tag or "", None
        self._say(tag)
        return True

    def _list(self) -> bool:
        """A bracket behind the tag: calls must follow."""
        inner = self._buffer[1:].lstrip()
        if not inner:
            return False
        if inner[0] != "{":
            return self._no_call()
        bracket, self._buffer = self._buffer[: len(self._buffer) - len(inner)], inner
        self._listed = True
        return self._call(written=bracket)

    def _next_in_list(self) -> bool:
        """Another call, or the list's end."""
        between = _BETWEEN.match(self._buffer)
        opening = between[0] if between else ""
        rest = self._buffer[len(opening) :]
        if not rest:
            return False
        if rest[0] == "{":
            self._buffer = rest
            self._read(opening, tagged=True)
        else:
            self._listed = False
            self._buffer = rest[1:] if rest[0] == "]" else self._buffer
        return True

    def _between_calls(self) -> bool:
        """Whether nothing but commas and blanks of a list is left."""
        return self._listed and _BETWEEN.fullmatch(self._buffer) is not None

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
        self._listed = False
        self._say(self._opening)
        self._not_called()
