"""A client's JSON schema as the grammar engine takes it: bounded in size, without words that only annotate."""

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

MAX_CHARACTERS = 262_144
"""Longest schema in JSON. An enum of this length takes 0.06 s to compile."""

MAX_MULTIPLE = 10_000
"""Largest `multipleOf` without its decimal point: the engine makes a state of each remainder, which takes 0.03 s. For
combined schemas it is the limit of the least common multiple."""

_MOST_REMAINDERS = 20_000  # of all of them in a schema

_ANNOTATIONS = frozenset(
    ("base64url", "binary", "byte", "decimal", "json-string", "password", "path", "regex", "uri-reference")
)
"""Formats that say what a text is for, and that no validator checks by default."""

_ONE = frozenset(
    (
        *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    )
)
_LISTS = frozenset(("allOf", "anyOf", "items", "oneOf", "prefixItems"))
_MAPS = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
"""Keywords whose value is a schema, a list of schemas, or an object of them."""


def compilable(schema: Mapping[str, Any], strict: bool = False) -> str:
    """The schema in JSON, for the grammar engine.

    Args:
        schema: the client's.
        strict: OpenAI's: objects hold no other properties than those named.

    Raises:
        ValueError: it is too large, or holds a number that takes too long to compile.
    """
    text = json.dumps(prepared(schema, strict), allow_nan=False)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the schema has {len(text)} characters in JSON; at most {MAX_CHARACTERS} are compiled")
    _check_multiples(schema)
    return text


def prepared(schema: Any, strict: bool) -> Any:
    """The schema without words that only annotate; `strict`: with its objects closed."""
    if not isinstance(schema, Mapping):
        return schema  # true, false, or what the engine is going to refuse
    kept: dict[str, Any] = {}
    for name, value in schema.items():
        if (name == "uniqueItems" and value is False) or (name == "format" and _annotates(value)):
            continue
        # Schemas that are put together must stay open, or each would forbid what the others ask for.
        within = strict and name != "allOf"
        if name in _LISTS and isinstance(value, list):
            kept[name] = [prepared(part, within) for part in value]
        elif name in _MAPS and isinstance(value, Mapping):
            kept[name] = {key: prepared(part, within) for key, part in value.items()}
        elif name in _ONE:
            kept[name] = prepared(value, within)
        else:
            kept[name] = value
    if strict and "allOf" not in kept and ("properties" in kept or kept.get("type") == "object"):
        kept.setdefault("additionalProperties", False)
    return kept


def _annotates(value: Any) -> bool:
    return isinstance(value, str) and value in _ANNOTATIONS


def _check_multiples(schema: Mapping[str, Any]) -> None:
    together, total, common = False, 0, Fraction(1, 10**400)  # a part of every number that JSON has as a float
    for name, value in _keywords(schema):
        together = together or name in ("allOf", "$ref")
        if name == "multipleOf" and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            number = Fraction(str(value))
            if (remainders := _remainders(number)) > MAX_MULTIPLE:
                raise ValueError(f"multipleOf {value} takes too long to compile; up to {MAX_MULTIPLE} is allowed")
            if (total := total + remainders) > _MOST_REMAINDERS:
                raise ValueError("the schema's multipleOf take too long to compile; leave some out")
            common = Fraction(
                math.lcm(common.numerator, number.numerator), math.gcd(common.denominator, number.denominator)
            )
    if together and _remainders(common) > MAX_MULTIPLE:
        raise ValueError("the schema's multipleOf take too long to compile together; leave some out")


def _remainders(number: Fraction) -> int:
    """A decimal number without its point, as in 25 for 0.25; powers of ten, which end in zeros, count as one."""
    scale = 0
    while (number.numerator * 10**scale) % number.denominator:
        scale += 1
    whole = number.numerator * 10**scale // number.denominator
    return 1 if str(whole).rstrip("0") == "1" else whole


def _keywords(value: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) of all objects, in keywords or not: a bound may count too many."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield name, part
            yield from _keywords(part)
    elif isinstance(value, list):
        for part in value:
            yield from _keywords(part)
