"""The structure that a request asks for, and keeping a text to it: JSON, a schema, a regular expression or choices.

The grammar engine is llguidance, in the extra `structured`. It sees this model's tokens as bytes, and says before each
draw which of them may come next.
"""

import asyncio
import importlib.util
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import on_gpu
from serve.api.errors import invalid, shortened
from serve.api.grammar import json_schema
from serve.api.grammar.tools import calls_grammar
from serve.api.text.codec import TextCodec

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer
from serve.api.grammar.tools import calls_schema
from serve.api.messages import MessageFormat
from serve.api.schemas import ChatRequest, GenerationRequest

_WHITE_SPACE = r"[\x20\x0A]{0,8}"
"""Between JSON's tokens; with no limit, a model that is unsure may write blanks to the end of its context."""

_KEPT = 32
"""Compiled grammars: clients mostly ask for the same few."""

INSTALLED = importlib.util.find_spec("llguidance") is not None


def apart(words: Tensor) -> Tensor:
    """The bits of [n] int32, the lowest first: [32 n] bool."""
    places = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[:, None] >> places) & 1).view(-1).to(torch.bool)


class GrammarMask:
    """One choice's way through a grammar. Implements the engine's `TokenMask`.

    Attributes:
        asked: the (field, kind, value) that it was made of, to make it again elsewhere.
        field: the request's field that asked for it.
        error: why the grammar cannot be followed any further; the choice is then to be given up.
    """

    def __init__(
        self,
        matcher: "LLMatcher",
        end_tokens: Sequence[int],
        asked: tuple[str, str, Any],
        vocab: int,
        threads: "LLExecutor",
    ):
        self._matcher = matcher
        self._end_tokens = list(end_tokens)
        self._vocab = vocab
        self._threads = threads
        self._next: NDArray[np.int32] | None = None
        self.asked = asked
        self.field = asked[0]
        self.error: str | None = None

    @classmethod
    def prepare(cls, masks: Sequence["GrammarMask"]) -> None:
        """Find out together, on all threads, what the grammars allow next."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        # All masks of a server are over one model's tokens.
        bits = allocate_token_bitmask(len(masks), masks[0]._vocab)
        fill_next_token_bitmask_par(masks[0]._threads, [(one._matcher, row) for row, one in enumerate(masks)], bits)
        for mask, row in zip(masks, bits, strict=True):
            mask._next = row

    def mask(self, logits: Tensor) -> None:
        """Forbid what the grammar does not allow next."""
        if self._next is None:
            self.prepare([self])
        assert self._next is not None
        words = np.zeros(-(-len(logits) // 32), dtype=np.int32)
        count = min(len(words), len(self._next))
        words[:count], self._next = self._next[:count], None
        if self._matcher.is_error():
            self.error = _reason(self._matcher)
            for token in self._end_tokens:
                words.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
        if logits.device.type == "cpu":
            allowed = torch.from_numpy(np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_))
        else:
            # Only a bit for each token is brought to a device, which takes them apart.
            allowed = apart(on_gpu.brought(torch.from_numpy(words), logits.device))
        logits.masked_fill_(~allowed[: len(logits)], -torch.inf)

    def accept(self, token: int) -> None:
        """Go on in the grammar."""
        if self.error is None and not self._matcher.consume_token(token):
            self.error = _reason(self._matcher)

    def copy(self) -> "GrammarMask":
        """Another one in the same state, for another choice."""
        return GrammarMask(self._matcher.deep_copy(), self._end_tokens, self.asked, self._vocab, self._threads)


class Structures:
    """Compiles what requests ask for, over one model's tokens.

    It has separate threads, so that nothing else waits for a grammar, and keeps the grammars that were requested last.
    """

    def __init__(self, codec: TextCodec, end_tokens: Sequence[int]):
        self._codec = codec
        self._end_tokens = tuple(end_tokens)
        self._compilers = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4), thread_name_prefix="overtone-grammar")
        self._lock = Lock()
        self._compiled: OrderedDict[tuple[tuple[int, ...], str], LLMatcher] = OrderedDict()
        self._tokenizers: dict[tuple[int, ...], LLTokenizer] = {}

    async def compiled(self, field: str, kind: str, value: Any, ends: tuple[int, ...] | None = None) -> GrammarMask:
        """`mask`, off the event loop. If the caller is cancelled before its turn comes, nothing is compiled."""
        return await asyncio.get_running_loop().run_in_executor(self._compilers, self.mask, field, kind, value, ends)

    def mask(self, field: str, kind: str, value: Any, ends: tuple[int, ...] | None = None) -> GrammarMask:
        """A mask at the grammar's beginning. Takes milliseconds, the first time more.

        Args:
            field: the request's, for messages.
            kind: see `asked_structure`.
            value: likewise.
            ends: tokens that end the text; None: the model's own.

        Raises:
            ApiError: 400 if the extra is not installed, or the structure cannot be compiled or satisfied.
        """
        if not INSTALLED:
            raise invalid(
                field,
                f"{field} needs the server's extra `structured`: pip install 'overtone[structured]'",
                code="structured_not_installed",
            )
        ends = self._end_tokens if ends is None else ends
        if not ends:
            raise invalid(field, f"{field}: the model has no end token, so that a structure could not end")
        try:
            tokenizer = self._tokenizer(ends)
            matcher = self._matcher(tokenizer, ends, _grammar(kind, value))
        except Exception as error:  # it is the client's grammar that the engine fails on, in whatever way
            raise invalid(field, f"{field} cannot be enforced: {_one_line(str(error))}") from error
        return GrammarMask(matcher, ends, (field, kind, value), tokenizer.vocab_size, self._threads)

    @cached_property
    def _threads(self) -> "LLExecutor":
        from llguidance import LLExecutor

        return LLExecutor(torch.get_num_threads())

    def _matcher(self, tokenizer: "LLTokenizer", ends: tuple[int, ...], grammar: str) -> "LLMatcher":
        """A matcher that has not gone anywhere yet.

        Raises:
            ValueError: the grammar is wrong, too large, or no text satisfies it.
        """
        from llguidance import LLMatcher, LLParserLimits  # an extra: not there in every installation

        asked = (ends, grammar)
        with self._lock:
            found = self._compiled.get(asked)
            if found is not None:
                self._compiled.move_to_end(asked)
                return found.deep_copy()
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if not matcher.is_error():
            matcher.compute_bitmask()  # tells whether any text begins as the grammar asks
        if matcher.is_error():
            raise ValueError(_reason(matcher))
        with self._lock:
            self._compiled[asked] = matcher
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return matcher.deep_copy()

    def _tokenizer(self, ends: tuple[int, ...]) -> "LLTokenizer":
        """The tokenizer as the grammar engine has it: one for each set of tokens that end a text."""
        if (found := self._tokenizers.get(ends)) is None:
            found = self._tokenizers[ends] = self._read_tokenizer(ends)
        return found

    def _read_tokenizer(self, ends: tuple[int, ...]) -> "LLTokenizer":
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        try:
            return LLTokenizer(self._codec.tokenizer.to_str(), eos_token=list(ends))
        except ValueError:  # a kind of tokenizer that it does not read by itself
            return LLTokenizer(TokenizerWrapper(_TokenTable(self._codec, ends[0])))


class _TokenTable:
    """A tokenizer as llguidance asks for one: each token's bytes."""

    def __init__(self, codec: TextCodec, end_token: int):
        self._codec = codec
        self.eos_token_id = end_token
        self.bos_token_id = None
        special = codec.special_tokens
        self.special_token_ids = sorted(special)
        self.tokens = [
            b"\xff" + str(token).encode() if token in special else codec.token_bytes(token)
            for token in range(codec.tokenizer.get_vocab_size())
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode()
        return list(self._codec.encode(text, special=False))


def _grammar(kind: str, value: Any) -> str:
    """What the grammar engine compiles.

    Raises:
        ValueError: the structure is too large, too deep or malformed.
    """
    from llguidance import LLMatcher, regex_to_lark

    match kind:
        case "regex":
            # As in a JSON schema's pattern, \d and \w are ASCII's.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(value, use_ascii='dw')}/")
        case "choice":
            if (characters := sum(map(len, value))) > json_schema.MAX_CHARACTERS:
                raise ValueError(f"the choices have {characters} characters; {json_schema.MAX_CHARACTERS} are allowed")
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in value))
        case "calls":
            parser, tools, special = value
            for tool in tools:
                if tool.function.strict:
                    json_schema.compilable(tool.function.parameters or {}, strict=True)  # refuses what is too large
            return LLMatcher.grammar_from_lark(calls_grammar(parser, tools, special, _WHITE_SPACE))
    schema: Mapping[str, Any] = value
    text = json_schema.compilable(schema, strict=kind == "strict")
    return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _WHITE_SPACE})


def _reason(matcher: "LLMatcher") -> str:
    """Why a matcher cannot go on, in a line."""
    error = matcher.get_error()
    return "no text satisfies it" if error.startswith("NoExtension") else _one_line(error)


def _one_line(text: str) -> str:
    if text.startswith("recursion limit exceeded"):
        return "it is nested too deeply"
    return shortened(" ".join(text.replace("<non-verbose/>", "").split()), 200)


def asked_structure(body: GenerationRequest) -> tuple[str, str, Any] | None:
    """(field, kind, value) of the structure that a body asks for.

    The kinds are "schema", "strict", "regex" and "choice"; `asked_calls` has "calls".
    """
    if isinstance(body, ChatRequest) and body.must_call:
        several = body.parallel_tool_calls and body.tool_choice == "required"
        return "tool_choice", "schema", calls_schema(body.offered_tools, several)
    return _asked_text(body)


def asked_calls(codec: TextCodec, body: GenerationRequest, shape: MessageFormat) -> tuple[str, str, Any] | None:
    """The structure of the calls that the model may make by itself; None if nothing keeps them to a schema.

    A structure that the body asks for comes first. Without the extra, `strict` tools are as the others.
    """
    if not (isinstance(body, ChatRequest) and body.strict_tools and shape.parser and INSTALLED):
        return None
    special = {text: token for token, text in codec.special_texts(shape.markers).items()}
    return "tools", "calls", (shape.parser, body.offered_tools, special)


def _asked_text(body: GenerationRequest) -> tuple[str, str, Any] | None:
    structured, response = body.structured_outputs, body.response_format
    if structured is not None:
        if structured.regex is not None:
            return "structured_outputs", "regex", structured.regex
        if structured.choice is not None:
            return "structured_outputs", "choice", structured.choice
        return "structured_outputs", "schema", {"type": "object"} if structured.json_ is None else structured.json_
    if response is None or response.type == "text":
        return None
    if response.type == "json_object":
        return "response_format", "schema", {"type": "object"}
    return "response_format", "strict" if response.json_schema.strict else "schema", response.json_schema.schema_
