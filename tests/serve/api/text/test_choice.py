import pytest

from serve.api.errors import ApiError
from serve.api.text.choice import ChoiceText, Piece, TextOptions
from serve.api.text.codec import Echo, TextCodec
from serve.api.text.logprobs import logprobs_object
from serve.engine import Output, TokenOutput
from tests.serve.api.fakes import EOS, byte_codec

CODEC = byte_codec()


def special_codec() -> TextCodec:
    """`byte_codec` with <bos>, token 257, beside <eos>."""
    tokenizer = byte_codec().tokenizer
    tokenizer.add_special_tokens(["<bos>"])
    return TextCodec(tokenizer)


def outputs(data: bytes | list[int], finish: str = "length", size: int = 1) -> list[Output]:
    tokens = [TokenOutput(token, -1.0, ((token, -1.0),)) for token in data]
    groups = [tuple(tokens[at : at + size]) for at in range(0, len(tokens), size)]
    return [Output("r", group, finish if number == len(groups) else None) for number, group in enumerate(groups, 1)]


def run(steps: list[Output], prompt: bytes = b"p", prompt_text: str | None = "p", **options) -> list[Piece]:
    echo = Echo.of(CODEC, prompt, prompt_text) if options.pop("echo", False) else None
    text, pieces = ChoiceText(CODEC, tuple(prompt), echo, TextOptions(**options)), []
    for step in steps:
        pieces.append(text.push(step))
        if pieces[-1].finish_reason:
            break
    return pieces


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_text_and_reason(size):
    pieces = run(outputs("héllo".encode(), size=size))
    assert joined(pieces) == "héllo"
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]


@pytest.mark.promise(number=11)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_stop_string_across_tokens_cuts_before_it_and_is_never_sent(size):
    pieces = run(outputs(b"one STOP two", size=size), stops=(" STOP",))
    assert joined(pieces) == "one"
    assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == ("stop", " STOP")


def test_a_false_beginning_of_a_stop_string_is_sent_after_all():
    pieces = run(outputs(b"STOx STO"), stops=("STOP",))
    assert [piece.text for piece in pieces] == ["", "", "", "STOx", " ", "", "", "STO"]
    assert pieces[-1].finish_reason == "length"


def test_an_included_stop_string():
    assert joined(run(outputs(b"one STOP two"), stops=("STOP",), include_stop=True)) == "one STOP"


def test_a_stop_string_counts_from_min_tokens_on():
    pieces = run(outputs(b"a.b.c"), stops=(".",), min_tokens=3)
    assert joined(pieces) == "a.b"
    assert len(pieces) == 4


def test_a_stop_string_that_the_last_token_completes():
    pieces = run(outputs(b"abX"), stops=("X",))
    assert (joined(pieces), pieces[-1].finish_reason, pieces[-1].stop_reason) == ("ab", "stop", "X")


def test_end_tokens_are_not_text():
    pieces = run(outputs([*b"ab", ord("Z")], finish="stop"), stop_token_ids=frozenset({ord("Z")}))
    assert (joined(pieces), pieces[-1].stop_reason) == ("ab", ord("Z"))
    kept = run(outputs([*b"ab", ord("Z")], finish="stop"), stop_token_ids=frozenset({ord("Z")}), include_stop=True)
    assert joined(kept) == "abZ"


def test_the_models_own_end_gives_no_stop_reason():
    last = run(outputs([*b"ab", EOS], finish="stop"))[-1]
    assert (last.text, last.finish_reason, last.stop_reason) == ("", "stop", None)


def test_an_unfinished_character_at_the_limit_is_left_out():
    assert joined(run(outputs("a😀".encode()[:-1]))) == "a"


def test_echo_begins_with_the_prompt_as_it_was_written():
    assert joined(run(outputs(b"xy"), prompt=b"abc", prompt_text="aBC", echo=True)) == "aBCxy"
    assert joined(run(outputs(b"xy"), prompt=b"abc", prompt_text=None, echo=True)) == "abcxy"


def test_echo_without_a_token():
    pieces = run([Output("r", (), "length")], prompt=b"abc", prompt_text="abc", echo=True)
    assert pieces == [Piece("abc", (), "length")]


def test_logprobs_in_openais_shape():
    pieces = run(outputs("aé".encode()), logprobs=True)
    assert logprobs_object(CODEC, [record for piece in pieces for record in piece.records]) == {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "top_logprobs": [{"a": -1.0}, {"bytes:\\xc3": -1.0}, {"bytes:\\xa9": -1.0}],
        "text_offset": [0, 1, 1],
    }


def test_logprobs_of_an_echoed_prompt_come_first():
    scored = (None, TokenOutput(ord("b"), -2.0, ((ord("x"), -0.5),)))
    step = Output("r", (TokenOutput(ord("c"), -3.0, ()),), "length", prompt_logprobs=scored)
    (piece,) = run([step], prompt=b"ab", prompt_text="ab", echo=True, logprobs=True)
    assert logprobs_object(CODEC, piece.records) == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -2.0, -3.0],
        "top_logprobs": [None, {"x": -0.5, "b": -2.0}, {"c": -3.0}],
        "text_offset": [0, 1, 2],
    }


SPECIAL = special_codec()


@pytest.mark.parametrize(
    ("prompt", "written", "text", "offsets"),
    [
        ([256, 65, 256, 66], "<eos>A<eos>B", "<eos>A<eos>B", [0, 5, 6, 11]),
        ([256, 65, 256, 66], None, "<eos>A<eos>B", [0, 5, 6, 11]),
        ([257, 65, 256, 66], "A<eos>B", "A<eos>B", [0, 0, 1, 6]),  # <bos> is the tokenizer's own
        ([257, 257, 65], "<bos>A", "<bos>A", [0, 5, 5]),
        ([65, 256], "A", "A", [0, 1]),
        ([*"é".encode(), 256, 66], None, "é<eos>B", [0, 0, 1, 6]),
        ([256, 256], None, "<eos><eos>", [0, 5]),
    ],
)
def test_offsets_in_a_prompt_with_special_tokens(prompt, written, text, offsets):
    scored = (None, *(TokenOutput(token, -2.0, ()) for token in prompt[1:]))
    step = Output("r", (TokenOutput(ord("c"), -3.0, ()),), "length", prompt_logprobs=scored)
    choice = ChoiceText(SPECIAL, tuple(prompt), Echo.of(SPECIAL, prompt, written), TextOptions(logprobs=True))
    piece = choice.push(step)
    assert piece.text == f"{text}c"
    assert [record.offset for record in piece.records] == [*offsets, len(text)]


def test_a_prompt_that_ends_inside_a_character_is_finished_by_the_completion():
    before, after = "wörld 🌍"[:-1].encode() + "🌍".encode()[:2], "🌍".encode()[2:]
    steps = outputs(after + b"!")
    assert joined(run(steps, prompt=before, prompt_text=None)) == "🌍!"
    assert joined(run(steps, prompt=before, prompt_text=None, echo=True)) == "wörld 🌍!"
    assert joined(run(outputs(b"!"), prompt=before, prompt_text=None, echo=True)) == "wörld �!"


def test_a_replacement_character_that_the_model_wrote_is_kept():
    assert joined(run(outputs("a��".encode(), finish="length"))) == "a��"
    assert [piece.text for piece in run(outputs("�".encode()))] == ["", "", "�"]


def test_tokens_that_a_stop_string_cut_have_no_logprobs():
    pieces = run(outputs(b"abSTOP"), stops=("STOP",), logprobs=True)
    assert [record.token for piece in pieces for record in piece.records] == list(b"ab")


def test_every_token_has_its_logprob_once_although_text_is_held_back():
    pieces = run(outputs(b"STOx STO"), stops=("STOP",), logprobs=True)
    assert [record.token for piece in pieces for record in piece.records] == list(b"STOx STO")


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        (Output("r", (), "error", "expert a failed to load"), 500, "expert a failed to load"),
        (Output("r", (), "abort"), 503, "stopped"),
    ],
)
def test_the_engine_giving_up_is_an_error(output, status, message):
    with pytest.raises(ApiError, match=message) as error:
        run([output])
    assert error.value.status == status
