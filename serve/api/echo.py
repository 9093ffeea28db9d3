"""A prompt at the beginning of the text that continues it."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.api.detokenizer import Detokenizer
from serve.api.text import TextCodec


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
