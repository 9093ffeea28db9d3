"""A client's schema as the grammar engine takes it."""

import json

import pytest

from serve.api.grammar.json_schema import MAX_CHARACTERS, compilable
from serve.api.grammar.structure import INSTALLED, Structures
from tests.serve.api.fakes import EOS, byte_codec

STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        ({"type": "object"}, {"type": "object", "additionalProperties": False}),
        (
            {"properties": {"a": {"type": "object", "properties": {"b": STRING}}}},
            {
                "properties": {"a": {"type": "object", "properties": {"b": STRING}, "additionalProperties": False}},
                "additionalProperties": False,
            },
        ),
        ({"type": "object", "additionalProperties": STRING}, {"type": "object", "additionalProperties": STRING}),
        ({"enum": [{"type": "object"}]}, {"enum": [{"type": "object"}]}),
        (
            {"type": "array", "items": {"type": "object"}},
            {"type": "array", "items": {"type": "object", "additionalProperties": False}},
        ),
        (
            {"$defs": {"properties": {"type": "object"}}, "$ref": "#/$defs/properties"},
            {"$defs": {"properties": {"type": "object", "additionalProperties": False}}, "$ref": "#/$defs/properties"},
        ),
        # Either part would forbid what the other one asks for.
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},) * 2,
    ],
)
def test_a_strict_schema_closes_its_objects(schema, closed):
    assert json.loads(compilable(schema, strict=True)) == closed
    assert json.loads(compilable(schema)) == schema


@pytest.mark.parametrize("name", ["path", "binary", "byte", "password", "decimal", "regex", "base64url", "json-string"])
def test_a_format_that_only_annotates_is_left_out(name: str):
    assert json.loads(compilable({"anyOf": [{"type": "string", "format": name}]})) == {"anyOf": [STRING]}


def test_a_property_may_be_called_like_a_keyword():
    schema = {"properties": {"format": {"const": "path"}, "uniqueItems": {"const": False}}}
    assert json.loads(compilable(schema)) == schema


@pytest.mark.skipif(not INSTALLED, reason="needs llguidance")
@pytest.mark.parametrize(
    ("schema", "refused"),
    [
        ({"type": "array", "uniqueItems": False}, None),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "uri-reference"}, None),
        ({"type": "string", "format": "date-time"}, None),
        ({"type": "string", "format": "colour"}, "Unknown format: colour"),
        ({"not": STRING}, "not"),
    ],
)
def test_what_the_grammar_engine_says(schema, refused: str | None):
    structures = Structures(byte_codec(), (EOS,))
    if refused is None:
        assert structures.mask("response_format", "schema", schema).error is None
    else:
        with pytest.raises(Exception, match=refused):
            structures.mask("response_format", "schema", schema)


@pytest.mark.parametrize("multiple", [1, 7, 0.01, 0.25, 9973, 1_000_000, 1e-6, 10**300, 99.99])
def test_multiples_that_compile_quickly(multiple: float):
    assert json.loads(compilable({"multipleOf": multiple})) == {"multipleOf": multiple}


@pytest.mark.parametrize("multiple", [10_007, 99_991_000, 1234.567, 1e300 * 3])
def test_multiples_that_would_take_long(multiple: float):
    with pytest.raises(ValueError, match="takes too long to compile"):
        compilable({"properties": {"a": {"type": "number", "multipleOf": multiple}}})


def test_the_size_of_a_schema_is_bounded():
    with pytest.raises(ValueError, match=f"at most {MAX_CHARACTERS} are compiled"):
        compilable({"enum": ["x" * MAX_CHARACTERS]})
