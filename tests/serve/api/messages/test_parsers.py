"""What a reply's text says does not depend on where its pieces end, and no text is lost."""

import itertools
import json
import random

import pytest

from serve.api.messages import Dialect, MessageFormat, MessageReader
from serve.api.messages.reader import ThinkingParser

A, B = '{"name": "f", "arguments": {"x": [1, {"y": "}"}]}}', '{"name": "g", "arguments": {}}'
P = A.replace("arguments", "parameters")
ARGUMENTS = '{"x": [1, {"y": "}"}]}'
F, G = ("f", ARGUMENTS), ("g", "{}")


def read(parser: str, pieces, **fields):
    """(content, [(name, arguments)]) of a text in pieces."""
    reader = MessageReader(MessageFormat(parser, frozenset(("f", "g")), **fields))
    deltas = [reader.push(piece) for piece in pieces] + [reader.push("", last=True)]
    streamed: dict[int, list[str]] = {}
    for part in itertools.chain.from_iterable(delta.calls for delta in deltas):
        if part.name is not None:
            assert part.index == len(streamed)
            streamed[part.index] = [part.name, ""]
        streamed[part.index][1] += part.arguments
    calls = [(call.name, call.arguments) for call in reader.calls]
    assert calls == [tuple(call) for call in streamed.values()]
    return "".join(delta.content for delta in deltas), calls


CASES = [
    # parser, text, content, calls
    ("hermes", "plain", "plain", []),
    ("hermes", " \n plain <tool", " \n plain <tool", []),
    ("hermes", "", "", []),
    ("hermes", "  ", "  ", []),
    ("hermes", f"<tool_call>\n{A}\n</tool_call>", "", [F]),
    ("hermes", f"\n\n<tool_call>{A}</tool_call>\n<tool_call>{B}</tool_call>\n", "", [F, G]),
    ("hermes", f"Let me see.\n<tool_call>{A}</tool_call>", "Let me see.\n", [F]),
    ("hermes", f"<tool_call>{A}</tool_call>\n done", "done", [F]),
    ("hermes", f"<tool_call>{A}<tool_call>{B}", "", [F, G]),
    ("hermes", f"<tool_call>{A}</tool_ca", "", [F]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": [1', "", [("f", '{"x": [1')]),
    ("hermes", '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", [("f", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("f", '{"x": 1}')]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"type": "function", "function": {"name": "f", "arguments": {}}}', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f\\u00e9", "arguments": {}}', "", [("fé", "{}")]),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>', "", [("other", "{}")]),
    ("hermes", "<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
    ("hermes", f"<tool_call> <tool_call>{B}", "<tool_call> ", [G]),
    ("hermes", f'<tool_call>{{"a": "<tool_call>{B}', '<tool_call>{"a": "', [G]),
    ("hermes", '<tool_call>{"name": ]}</tool_call>', '<tool_call>{"name": ]}</tool_call>', []),
    ("hermes", f"<tool_call>[{A}, {B}]</tool_call> so", "so", [F, G]),
    ("hermes", f"<tool_call>[ {A} ]\n</tool_c", "", [F]),
    ("hermes", f"<tool_call>[{A},", "", [F]),
    ("hermes", "<tool_call>[]</tool_call>", "<tool_call>[]</tool_call>", []),
    ("hermes", "<tool_call>[", "<tool_call>[", []),
    ("hermes", "a < b <tool_calls> c", "a < b <tool_calls> c", []),
    ("llama3_json", P, "", [F]),
    ("llama3_json", f" {P} ; {B}", "", [F, G]),
    ("llama3_json", f"{P};", "", [F]),
    ("llama3_json", f"<|python_tag|>{P}", "", [F]),
    ("llama3_json", f"So: <|python_tag|> {B}", "So: ", [G]),
    ("llama3_json", '<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")', []),
    ("llama3_json", '{"name": "nobody", "parameters": {}}', '{"name": "nobody", "parameters": {}}', []),
    ("llama3_json", '{"answer": {"a": 1}} and more', '{"answer": {"a": 1}} and more', []),
    ("llama3_json", '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
    ("llama3_json", f"text {P}", f"text {P}", []),
    ("llama3_json", f"{P} text", "text", [F]),
    ("llama3_json", f"{P}; text", "; text", [F]),
    ("llama3_json", "{", "{", []),
    ("llama3_json", "{}", "{}", []),
    ("llama3_json", "  ", "  ", []),
    ("mistral", f"[TOOL_CALLS] [{A}, {B}]", "", [F, G]),
    ("mistral", f"Well. [TOOL_CALLS][{A}]", "Well. ", [F]),
    ("mistral", f"[TOOL_CALLS]f{ARGUMENTS}", "", [F]),
    ("mistral", f"[TOOL_CALLS]f[ARGS]{ARGUMENTS}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{{}}", "", [F, G]),
    ("mistral", f"[TOOL_CALLS]{A}", "", [F]),
    ("mistral", f"[TOOL_CALLS] [{A}", "", [F]),
    ("mistral", f"[TOOL_CALLS] [{A}] so", "so", [F]),
    ("mistral", "[TOOL_CALLS] [1, 2]", "[TOOL_CALLS] [1, 2]", []),
    ("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", []),
    ("mistral", f"[TOOL_CALLS] none at all, {'x' * 500}", f"[TOOL_CALLS] none at all, {'x' * 500}", []),
    ("mistral", "[1, 2, 3] [TOOL", "[1, 2, 3] [TOOL", []),
]


@pytest.mark.parametrize(("parser", "text", "content", "calls"), CASES)
def test_calls_are_found_in_any_pieces(parser: str, text: str, content: str, calls):
    draw = random.Random(0)
    splits = [[text], list(text)]
    for _ in range(40):
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(1, 6)))
        splits.append([text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])])
    for pieces in splits:
        assert read(parser, pieces) == (content, calls), pieces


ALPHABET = [
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "[ARGS]",
        "{",
        "}",
        "[",
        "]",
        ",",
        '"',
        "\\",
        " ",
    ),
    *("\n", "f", ";", A, B, P, '{"name": "f", "arguments": ', "<", "</tool"),
]


@pytest.mark.parametrize("parser", ["hermes", "llama3_json", "mistral"])
def test_any_text_reads_the_same_in_any_pieces(parser: str):
    draw = random.Random(1)
    for _ in range(400):
        text = "".join(draw.choices(ALPHABET, k=draw.randint(1, 9)))
        whole = read(parser, [text])
        assert read(parser, list(text)) == whole, text
        cuts = sorted(draw.choices(range(len(text) + 1), k=3))
        assert read(parser, [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]) == whole, text
        if not whole[1]:
            assert whole[0] == text


def test_only_what_may_be_a_tag_is_held_back():
    reader = MessageReader(MessageFormat("hermes", frozenset("f")))
    assert [reader.push(piece).content for piece in ("a", " b <", "c <tool", "x")] == ["a", " b ", "<c ", "<toolx"]
    reader = MessageReader(MessageFormat("llama3_json", frozenset("f")))
    assert [reader.push(piece).content for piece in ('{"an', 'swer"', ": 1")] == ["", '{"answer"', ": 1"]


def test_arguments_come_while_they_are_written():
    reader = MessageReader(MessageFormat("hermes"))
    pieces = ['<tool_call>{"name": "f", "arguments": {"x"', ": [1,", " 2]}", "}"]
    parts = [[(part.name, part.arguments) for part in reader.push(piece).calls] for piece in pieces]
    assert parts == [[("f", '{"x"')], [(None, ": [1,")], [(None, " 2]}")], []]


def test_one_call_where_several_are_not_wanted():
    assert read("hermes", [f"<tool_call>{A}</tool_call><tool_call>{B}</tool_call>"], several=False) == ("", [F])


def test_a_forced_list_needs_no_tag():
    for pieces in ([f"[{A}, {B}]"], list(f"[{A}, {B}]")):
        assert read("hermes", pieces, forced=True) == ("", [F, G])
    assert read("llama3_json", ['[{"name": "f", "arguments": {"x'], forced=True) == ("", [("f", '{"x')])


def test_mistrals_ids_have_nine_characters():
    for parser, length in (("mistral", 9), ("hermes", 29)):
        reader = MessageReader(MessageFormat(parser, forced=True))
        reader.push(f"[{A}]", last=True)
        assert len(reader.calls[0].id) == length


THOUGHTS = [
    # text, begins inside, reasoning, content
    ("<think>\nso\n\nit is\n</think>\n\nyes", False, "so\n\nit is", "yes"),
    ("so</think>yes", True, "so", "yes"),
    ("<think>so</think> yes ", True, "so", "yes "),
    ("so it", True, "so it", ""),
    ("so <", True, "so <", ""),
    ("<think>", False, "", ""),
    ("<thi", False, "", "<thi"),
    (" yes <think>no</think>", False, "", " yes <think>no</think>"),
    ("<think></think>yes", False, "", "yes"),
    ("", False, "", ""),
]


@pytest.mark.parametrize(("text", "inside", "reasoning", "content"), THOUGHTS)
def test_reasoning_is_split_off_in_any_pieces(text: str, inside: bool, reasoning: str, content: str):
    for size in (1, 2, 3, 5, 100):
        parser = ThinkingParser(inside)
        parts = [parser.push(text[start : start + size]) for start in range(0, len(text), size)] + [parser.finish()]
        assert tuple(map("".join, zip(*parts, strict=True))) == (reasoning, content)


def test_calls_come_after_the_reasoning():
    reader = MessageReader(MessageFormat("hermes", thinking=True))
    delta = reader.push(f"<think><tool_call></think><tool_call>{A}</tool_call>", last=True)
    assert (delta.reasoning, delta.content) == ("<tool_call>", "")
    assert json.loads(reader.calls[0].arguments) == json.loads(ARGUMENTS)


@pytest.mark.parametrize(
    ("template", "asked", "found"),
    [
        (None, "auto", None),
        ("{{ messages }}", "auto", None),
        ("{{ tools }} <tool_call>", "auto", "hermes"),
        ("{{ tools }} [TOOL_CALLS]", "auto", "mistral"),
        ("{{ tools }} ipython", "auto", "llama3_json"),
        ("{{ tools }}", "auto", None),
        ("{{ tools }} <tool_call><function=f>", "auto", None),
        ("{{ tools }}", "mistral", "mistral"),
        ("{{ tools }} <tool_call>", "none", None),
    ],
)
def test_a_parser_is_found_by_the_template(template: str | None, asked: str, found: str | None):
    assert Dialect.of(template, asked).tools == found


def test_a_parser_needs_a_template_that_takes_tools():
    with pytest.raises(ValueError, match="--tool-call-parser hermes: the model's chat template does not take tools"):
        Dialect.of("{{ messages }}", "hermes")
