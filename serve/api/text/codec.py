"""Text to tokens and back, whole or token by token: the only place of serving that holds a tokenizer."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers

from merge.bundle import read_tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"

PIECE = 4_096
"""Characters that are tokenised without asking how many tokens they are going to be."""

_SEAM = 32
"""More tokens than this no cut through a text adds."""


class TextTooLong(ValueError):  # noqa: N818
    """A text has more tokens than were allowed."""


class TextCodec:
    """A model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        # A tokenizer.json may ask for truncation or padding, which are for training; here every token counts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        # Echoed prompts with 20 alternatives a token ask for the same texts over and over; a vocabulary bounds them.
        self._token_texts: dict[int, str] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> "TextCodec":
        """Load a model directory's tokenizer, with the tokens that only tokenizer_config.json names.

        Raises:
            ValueError: tokenizer.json is missing, or cannot be read.
        """
        if not (directory / "tokenizer.json").is_file():
            raise ValueError(f"{directory} has no tokenizer.json, which serving needs to read and write text")
        return cls(read_tokenizer(directory))

    def encode(self, text: str, special: bool = True, most: int | None = None) -> tuple[int, ...]:
        """Token ids.

        The library keeps some 700 bytes for each token while it works, and the threads' heaps keep them after it. So a
        long text is first counted piece by piece, which ends as soon as it certainly has more than `most`.

        Args:
            text: what to tokenise.
            special: whether to add the special tokens that the model's tokenizer puts around a text.
            most: tokens, None for any number; a text of more may still be tokenised if it is short.

        Raises:
            TextTooLong: the text has more than `most` tokens.
        """
        if most is not None and len(text) > max(PIECE, most) and self._exceeds(text, most):
            raise TextTooLong(f"the text has more than {most} tokens")
        return tuple(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def word_tokens(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ways words may be written, at the start of a text and after a blank, each way once."""
        texts = dict.fromkeys(text for word in words for text in (word, f" {word.lstrip()}"))
        written = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return tuple(dict.fromkeys(tuple(encoding.ids) for encoding in written if encoding.ids))

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of whole token lists; `special`: with special tokens written out."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=not special)

    def unfinished(self, tokens: Sequence[int], text: str) -> int:
        """How many replacement characters at the end of the tokens' text are the beginning of a character.

        Bytes that nothing can complete, and U+FFFD that is the text of a token, are not counted.
        """
        if not text.endswith(_UNFINISHED):
            return 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        known = decoder.decode(b"".join(map(self.token_bytes, tokens)))
        if not decoder.getstate()[0]:
            return 0
        # A byte-level decoder writes one for the whole beginning, byte fallback one for each byte.
        return max(_count_at_end(text) - _count_at_end(known), 0)

    def readable(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of tokens that may end inside a character, without that character."""
        text = self.decode(tokens, special)
        shown = tokens if special else [token for token in tokens if token not in self.special_tokens]
        return text[: len(text) - self.unfinished(shown, text)]

    def token_text(self, token: int) -> str:
        r"""One token as OpenAI's logprobs show it: its text, or `bytes:\xe2\x82` if it is part of a character."""
        if (known := self._token_texts.get(token)) is None:
            known = self._token_texts[token] = self._token_text(token)
        return known

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one token, which may be part of a character; none for a token that does not exist."""
        piece = self.tokenizer.id_to_token(token)
        if piece is None:
            return b""
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        if _UNFINISHED in text and piece != text and (data := self._piece_bytes(piece)) is not None:
            return data
        return (text or piece).encode()

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        """Tokens that are not text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, content in added.items() if content.special)

    def special_texts(self, texts: Sequence[str]) -> dict[int, str]:
        """Token → text, of those texts that are special tokens, which are left out when tokens become text."""
        found = {self.tokenizer.token_to_id(text): text for text in texts}
        return {token: text for token, text in found.items() if token in self.special_tokens}

    def _token_text(self, token: int) -> str:
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        piece = self.tokenizer.id_to_token(token)
        if piece is None:
            return f"token_id:{token}"
        if _UNFINISHED not in text or piece == text:
            return text or piece
        data = self._piece_bytes(piece)
        if data is None:
            return piece
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _exceeds(self, text: str, most: int) -> bool:
        count = 0
        for start in range(0, len(text), PIECE):
            count += len(self.tokenizer.encode(text[start : start + PIECE], add_special_tokens=False).ids) - _SEAM
            if count > most:
                return True
        return False

    def _piece_bytes(self, piece: str) -> bytes | None:
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # byte fallback, "<0xE2>"
            return bytes.fromhex(piece[3:5])
        try:
            return bytes(self._byte_of_character[character] for character in piece)
        except KeyError:
            return None

    @cached_property
    def _byte_of_character(self) -> dict[str, int]:
        """GPT-2's alphabet: printable bytes are themselves, the others characters from U+0100 on, in order."""
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        own = {character: ord(character) for character in alphabet if ord(character) < 0x100}
        others = (byte for byte in range(0x100) if byte not in own.values())
        return own | dict(zip(sorted(set(alphabet) - set(own)), others, strict=True))


def _count_at_end(text: str) -> int:
    return len(text) - len(text.rstrip(_UNFINISHED))


_CONTEXT = 6
_MOST = 16
_LONGEST_CHARACTER = 4


class Detokenizer:
    """Text of a growing token list; a character that spans tokens comes out whole, with its last token.

    Only a character that further bytes could still complete is held back. Bytes that are not part of a character, and
    the replacement character if it is the text of a token, are text.

    Args:
        codec: the tokenizer.
        context: the tokens before. Some decoders drop the blank of a text's first word, and only the context says that
            this is not the first word; if it ends inside a character, that character comes with its last token.
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
