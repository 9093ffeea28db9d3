"""Tokens to text one token at a time."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from serve.api.text import TextCodec

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 6


class Detokenizer:
    """Text of a growing token list; a character that spans tokens comes out whole, with its last token.

    Args:
        codec: the tokenizer.
        context: the tokens before; some decoders drop the blank of a text's first word, and only the context says
            that this is not the first word.
    """

    def __init__(self, codec: TextCodec, context: Sequence[int] = ()):
        self._codec = codec
        self._anchor: list[int] = []
        self._pending: list[int] = []
        self._stream = DecodeStream(skip_special_tokens=True)
        for token in context[-_CONTEXT:]:
            self.push(token)
        self._pending.clear()

    def push(self, token: int) -> str:
        """Text that became readable with this token, often its own, "" in the middle of a character."""
        self._pending.append(token)
        try:
            text = self._stream.step(self._codec.tokenizer, token)
        except Exception as error:  # the library raises bare Exception
            if not str(error).startswith("Invalid prefix"):
                raise
            # Byte-fallback decoders may read the last bytes differently once more follow; what was sent stays sent.
            text = self._tail()
            self._stream = DecodeStream(skip_special_tokens=True)
            self._stream.step(self._codec.tokenizer, token)
        if text is None:
            return ""
        self._anchor, self._pending = self._pending[-1:], []
        return text

    def finish(self) -> str:
        """What is still held at the end, without the bytes of a character that never became whole."""
        text = self._tail().rstrip(_UNFINISHED)
        self._pending.clear()
        return text

    def _tail(self) -> str:
        if not self._pending:
            return ""
        before, after = self._codec.decode(self._anchor), self._codec.decode(self._anchor + self._pending)
        return after[len(before) :] if after.startswith(before) else self._codec.decode(self._pending)
