"""Tokens to text one token at a time, and a prompt's own text before it (`echo`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.api.text.codec import TextCodec

_CONTEXT = 6
_MOST = 16
_LONGEST_CHARACTER = 4


class Detokenizer:
    """Text of a growing token list; a character that spans tokens comes out whole, with its last token.

    Only a character that further bytes could still complete is held back: bytes that are part of no character, and the
    replacement character where it is what a token says, are text.

    Args:
        codec: the tokenizer.
        context: the tokens before. Some decoders drop the blank of a text's first word, and only the context says that
            this is not the first word; where it ends inside a character, that character comes with its last token.
        special: whether special tokens are written out.
    """

    def __init__(self, codec: TextCodec, context: Sequence[int] = (), special: bool = False):
        self._codec = codec
        self._special = special
        # Decoded together: tokens whose text was returned, then, from `_new` on, those that are held back.
        self._window = [token for token in context if self._is_text(token)][-_MOST:]
        self._new = len(self._window)
        self._sent = codec.readable(self._window, special)

    def push(self, token: int) -> str:
        """Text that became readable with this token, often its own, "" in the middle of a character."""
        if not self._is_text(token):
            return ""
        self._window.append(token)
        text = self._codec.decode(self._window, self._special)
        if self._codec.unfinished(self._window, text):
            return ""
        piece = self._unsent(text)
        self._sent, self._new = text, len(self._window)
        if self._new > _MOST:
            self._shorten()
        return piece

    def finish(self) -> str:
        """What is still held at the end, without the bytes of a character that never became whole."""
        piece = self._unsent(self._codec.readable(self._window, self._special))
        self._new = len(self._window)
        return piece

    def _is_text(self, token: int) -> bool:
        return self._special or token not in self._codec.special_tokens

    def _unsent(self, text: str) -> str:
        if text.startswith(self._sent):
            return text[len(self._sent) :]
        # Byte-fallback decoders may read the last bytes differently once more follow; what was sent stays sent.
        return self._codec.readable(self._window[self._new :], self._special)

    def _shorten(self) -> None:
        """Forget old tokens, at a place where no character is cut."""
        for size in range(_CONTEXT, _CONTEXT + _LONGEST_CHARACTER):
            window = self._window[-size:]
            text = self._codec.decode(window, self._special)
            if self._sent.endswith(text):
                break
        self._window, self._new, self._sent = window, len(window), text


@dataclass(frozen=True)
class Echo:
    """What all continuations of a prompt begin with.

    Attributes:
        text: the prompt as the client wrote it, or the text of its token ids, special tokens included.
        offsets: where each of its tokens begins in the text.
    """

    text: str
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, codec: TextCodec, tokens: Sequence[int], written: str | None) -> "Echo":
        """The echo of a prompt that the client wrote as text, or (None) as token ids.

        Takes some microseconds a token.
        """
        text = codec.readable(tokens, special=True) if written is None else written
        reader, offset, offsets = Detokenizer(codec, special=True), 0, []
        for token in tokens:
            offsets.append(min(offset, len(text)))
            piece = reader.push(token)
            # A special token that the text does not say here is one that the tokenizer put around it.
            if token not in codec.special_tokens or text.startswith(piece, offset):
                offset += len(piece)
        return cls(text, tuple(offsets))
