"""How a fine-tune generates its replies if it differs from the backbone: end tokens, chat template, sampling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.bundle.chat_template import TemplateText, read_template, special_tokens
from merge.bundle.end_tokens import checked_ids, end_tokens, read_object
from merge.bundle.errors import BundleError
from merge.bundle.tokenizer import read_tokenizer

SAMPLING_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 2, "from 0 to 2"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (lambda value: isinstance(value, int) and value >= -1, "an integer of at least -1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda value: 0 < value <= 100, "above 0 and at most 100"),
}
"""The fields of generation_config.json that are a request's defaults, as in vLLM, with a request's bounds."""

_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty"), (1,)),
    "top_k": (-1, 0),
    "min_p": (0,),
}
"""Values that change nothing, as if the field was not there."""


@dataclass(frozen=True)
class GenerationSettings:
    """What requests of an expert follow in place of the backbone's.

    Attributes:
        end_tokens: ids that end a reply; None: the backbone's.
        chat_template: what a conversation's prompt is made with; None: the backbone's.
        sampling: field of `SAMPLING_FIELDS` → its default, fields that are left out having the API's; None: the
            backbone's.
    """

    end_tokens: tuple[int, ...] | None = None
    chat_template: TemplateText | None = None
    sampling: Mapping[str, float] | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.end_tokens, self.chat_template, self.sampling))

    def as_json(self) -> dict[str, Any]:
        """What an expert's header says; `parse` reads it."""
        found: dict[str, Any] = {}
        if self.end_tokens is not None:
            found["eos_token_id"] = list(self.end_tokens)
        if (template := self.chat_template) is not None:
            found["chat_template"] = {"source": template.source, "variables": dict(sorted(template.used.items()))}
            if template.tool_source is not None:
                found["chat_template"]["tool_source"] = template.tool_source
        if self.sampling is not None:
            found["sampling"] = dict(sorted(self.sampling.items()))
        return found

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "GenerationSettings":
        """Read what `as_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        ends, template, sampling = (value.get(key) for key in ("eos_token_id", "chat_template", "sampling"))
        return cls(
            None if ends is None else checked_ids(list(ends), None, "the header"),
            None
            if template is None
            else TemplateText(
                str(template["source"]),
                {str(name): str(text) for name, text in template["variables"].items()},
                None if (tools := template.get("tool_source")) is None else str(tools),
            ),
            None if sampling is None else sampling_fields(dict(sampling), "the header"),
        )


def own_settings(backbone: Path, *directories: Path) -> GenerationSettings:
    """What a fine-tune says otherwise than its backbone.

    The tokens that end its replies are those that its generation_config.json or config.json names, and the one that
    its tokenizer ends texts with, if that is another than the backbone's, as vLLM has it. A file that is not there
    says nothing.

    Args:
        backbone: the model directory that serves it.
        directories: the fine-tune's. For an adapter, its own comes before that of the model that it was trained on;
            the first that has a setting gives it.

    Raises:
        BundleError: a file cannot be read, or says something impossible; the message names it.
    """
    return GenerationSettings(
        _own_ends(backbone, directories), _own_template(backbone, directories), _own_sampling(backbone, directories)
    )


def sampling_defaults(directory: Path) -> dict[str, float] | None:
    """The `SAMPLING_FIELDS` that generation_config.json sets; None if the file does not exist.

    Raises:
        BundleError: it is not JSON, or a field is out of its bounds.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return None
    return sampling_fields(read_object(path), str(path))


def sampling_fields(fields: Mapping[str, Any], place: str) -> dict[str, float]:
    """The `SAMPLING_FIELDS` among some fields, without those that are null.

    Raises:
        BundleError: one is out of its bounds.
    """
    found = {name: fields[name] for name in SAMPLING_FIELDS if fields.get(name) is not None}
    for name, value in found.items():
        fits, expected = SAMPLING_FIELDS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
            raise BundleError(f"{place}: {name} is {value!r}; it must be {expected}")
    return found


def _own_ends(backbone: Path, directories: Sequence[Path]) -> tuple[int, ...] | None:
    ours = end_tokens(backbone)
    ends = next((found for directory in directories if (found := end_tokens(directory))), ours)
    text = next((text for directory in directories if (text := special_tokens(directory).get("eos_token"))), None)
    if text is not None and text != special_tokens(backbone).get("eos_token"):
        token = _token_id(text, (*directories, backbone))
        ends = ends if token is None or token in ends else (*ends, token)
    if set(ends) == set(ours):
        return None
    return checked_ids(list(ends), read_object(backbone / "config.json").get("vocab_size"), str(directories[0]))


def _token_id(text: str, directories: Sequence[Path]) -> int | None:
    """The id of a token by the first of the tokenizers that can be asked."""
    asked = next((directory for directory in directories if (directory / "tokenizer.json").is_file()), None)
    return None if asked is None else read_tokenizer(asked).token_to_id(text)


def _own_template(backbone: Path, directories: Sequence[Path]) -> TemplateText | None:
    theirs = next((found for directory in directories if (found := read_template(directory)) is not None), None)
    if theirs is None:
        return None
    variables = special_tokens(backbone)
    for directory in reversed(directories):
        variables |= special_tokens(directory)
    theirs = replace(theirs, variables=variables)
    ours = read_template(backbone)
    return None if ours is not None and theirs.renders_like(ours) else replace(theirs, variables=theirs.used)


def _own_sampling(backbone: Path, directories: Sequence[Path]) -> dict[str, float] | None:
    theirs = next((found for directory in directories if (found := sampling_defaults(directory)) is not None), None)
    if theirs is None or _effective(theirs) == _effective(sampling_defaults(backbone) or {}):
        return None
    return theirs


def _effective(fields: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in fields.items() if value not in _NEUTRAL[name]}
