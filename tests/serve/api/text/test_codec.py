import codecs
import random

import pytest
from tokenizers import Tokenizer, decoders, models

from serve.api.text.codec import PIECE, Detokenizer, TextCodec, TextTooLong
from tests.serve.api.fakes import EOS, byte_codec

TEXT = "naïve 日本語 😀👩‍👩‍👧 – done"


def byte_fallback_codec() -> TextCodec:
    """A SentencePiece-like tokenizer: words with a blank in front, other bytes one by one."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ("▁", "a", "b", "▁ab", "cd"):
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return TextCodec(tokenizer)


def test_round_trip():
    codec = byte_codec()
    assert codec.decode(codec.encode(TEXT)) == TEXT
    assert codec.encode(TEXT) == tuple(TEXT.encode())


class Recorder:
    """A tokenizer that notes how long the texts were that it was given."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.lengths: list[int] = []

    def encode(self, text: str, add_special_tokens: bool):
        self.lengths.append(len(text))
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(("most", "pieces"), [(100, 1), (PIECE, 2), (5 * PIECE, 6)])
def test_of_a_text_that_is_too_long_only_a_beginning_is_tokenised(most: int, pieces: int):
    codec = byte_codec()
    codec.tokenizer = recorder = Recorder(codec.tokenizer)
    with pytest.raises(TextTooLong, match=f"more than {most} tokens"):
        codec.encode("x" * (1000 * PIECE), most=most)
    assert recorder.lengths == [PIECE] * pieces


@pytest.mark.parametrize("length", [0, 100, PIECE, 3 * PIECE])
def test_a_text_that_fits_is_tokenised_as_ever(length: int):
    text = "né" * (length // 2)
    codec = byte_codec()
    assert codec.encode(text, most=len(text.encode())) == codec.encode(text) == tuple(text.encode())


@pytest.mark.promise(number=11)
def test_characters_come_out_whole_with_their_last_byte():
    detokenizer = Detokenizer(byte_codec())
    pieces = [detokenizer.push(byte) for byte in "aé😀".encode()]
    assert pieces == ["a", "", "é", "", "", "", "😀"]
    assert detokenizer.finish() == ""


def test_an_unfinished_character_is_left_out_at_the_end():
    detokenizer = Detokenizer(byte_codec())
    pieces = [detokenizer.push(byte) for byte in "ok😀".encode()[:-1]]
    assert "".join(pieces) + detokenizer.finish() == "ok"


@pytest.mark.parametrize("make", [byte_codec, byte_fallback_codec])
@pytest.mark.parametrize("seed", range(40))
def test_any_token_sequence_streams_without_error(make, seed):
    codec, rng = make(), random.Random(seed)
    detokenizer, out = Detokenizer(codec), ""
    words = [codec.tokenizer.token_to_id(piece) for piece in "abab"]
    for token in [*(rng.randrange(codec.tokenizer.get_vocab_size()) for _ in range(60)), *words]:
        out += detokenizer.push(token)
    out += detokenizer.finish()
    assert out.encode().endswith(b"abab")


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_the_whole_text_for_byte_level_tokens(seed):
    codec, rng = byte_codec(), random.Random(seed)
    tokens = [rng.randrange(EOS) for _ in range(80)]
    detokenizer = Detokenizer(codec)
    out = "".join(map(detokenizer.push, tokens)) + detokenizer.finish()
    assert out == codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(tokens))


LOST = "\N{REPLACEMENT CHARACTER}"


def pieces_codec(*pieces: str) -> TextCodec:
    """`byte_codec` with more tokens, from 257 on: each a piece of bytes in GPT-2's alphabet."""
    tokenizer = byte_codec().tokenizer
    vocabulary = tokenizer.get_vocab(with_added_tokens=False) | {
        piece: EOS + 1 + number for number, piece in enumerate(pieces)
    }
    larger = Tokenizer(models.BPE(vocab=vocabulary | {"<eos>": EOS}, merges=[]))
    larger.decoder = decoders.ByteLevel()
    larger.add_special_tokens(["<eos>"])
    return TextCodec(larger)


def alphabet(data: bytes) -> str:
    """Bytes in GPT-2's alphabet."""
    codec = byte_codec()
    return "".join(codec.tokenizer.id_to_token(byte) for byte in data)


def fallback_with_lost() -> TextCodec:
    """`byte_fallback_codec`, of which U+FFFD is a token."""
    tokenizer = byte_fallback_codec().tokenizer
    tokenizer.add_tokens([LOST])
    return TextCodec(tokenizer)


def test_a_replacement_character_that_a_token_says_is_text():
    codec = pieces_codec(alphabet(LOST.encode()))
    token = EOS + 1
    detokenizer = Detokenizer(codec)
    assert [detokenizer.push(one) for one in (ord("a"), token, token)] == ["a", LOST, LOST]
    assert detokenizer.finish() == ""
    assert (codec.token_text(token), codec.token_bytes(token)) == (LOST, LOST.encode())
    fallback = fallback_with_lost()
    assert Detokenizer(fallback).push(fallback.tokenizer.token_to_id(LOST)) == LOST


@pytest.mark.parametrize(("make", "first"), [(byte_codec, 0), (byte_fallback_codec, 3)])
def test_a_replacement_character_of_three_bytes_is_text_with_the_last(make, first):
    detokenizer = Detokenizer(make())
    data = f"{LOST}{LOST}".encode()
    assert [detokenizer.push(first + byte) for byte in data] == ["", "", LOST, "", "", LOST]
    assert detokenizer.push(first + 0xE2) == ""
    assert detokenizer.finish() == ""


@pytest.mark.parametrize(("make", "first"), [(byte_codec, 0), (byte_fallback_codec, 3)])
def test_a_byte_that_nothing_can_complete_is_not_waited_for(make, first):
    codec = make()
    detokenizer = Detokenizer(codec)
    tokens = first + 0xFF, codec.tokenizer.token_to_id("a"), first + 0x80
    assert [detokenizer.push(token) for token in tokens] == [LOST, "a", LOST]
    assert detokenizer.finish() == ""


def test_a_token_with_a_whole_character_and_the_beginning_of_another():
    codec = pieces_codec(alphabet(b" \xf0\x9f"), alphabet(b"\x8c\x8d"), alphabet(LOST.encode() + b"\xf0\x9f"))
    first, second, lost = EOS + 1, EOS + 2, EOS + 3
    detokenizer = Detokenizer(codec)
    assert [detokenizer.push(token) for token in (first, second)] == ["", " 🌍"]
    for token, text in ((first, " "), (lost, LOST)):
        detokenizer = Detokenizer(codec)
        assert detokenizer.push(token) == ""
        assert detokenizer.finish() == text
    assert (codec.token_text(lost), codec.token_bytes(lost)) == (
        r"bytes:\xef\xbf\xbd\xf0\x9f",
        LOST.encode() + b"\xf0\x9f",
    )


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize(("make", "first"), [(byte_codec, 0), (byte_fallback_codec, 3)])
def test_a_context_that_ends_inside_a_character(make, first, cut):
    codec, data = make(), "世界🌍🌈".encode()
    tokens = [first + byte for byte in data]
    prompt, rest = tokens[: -4 - cut], tokens[-4 - cut :]
    said = codec.readable(prompt)
    detokenizer = Detokenizer(codec, prompt)
    assert said + "".join(map(detokenizer.push, rest)) + detokenizer.finish() == "世界🌍🌈"


@pytest.mark.parametrize(("make", "first"), [(byte_codec, 0), (byte_fallback_codec, 3)])
def test_a_long_text_of_characters_of_several_bytes(make, first):
    codec, text = make(), TEXT.replace(" ", "") * 20
    detokenizer = Detokenizer(codec)
    pieces = [detokenizer.push(first + byte) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)


def test_special_tokens_within_a_character_change_nothing():
    detokenizer = Detokenizer(byte_codec())
    euro = "€".encode()
    tokens = [euro[0], *[EOS] * 100, euro[1], EOS, euro[2]]
    assert "".join(map(detokenizer.push, tokens)) == "€"
    assert Detokenizer(byte_codec(), special=True).push(EOS) == "<eos>"


def test_bytes_that_change_how_earlier_ones_read_do_not_stop_the_stream():
    codec = byte_fallback_codec()
    token = codec.tokenizer.token_to_id
    tokens = [token("<0x1A>"), token("<0xE2>"), token("a"), token("b")]
    detokenizer = Detokenizer(codec)
    assert "".join(map(detokenizer.push, tokens)).endswith("ab")


def test_the_context_keeps_the_blank_of_a_following_word():
    codec = byte_fallback_codec()
    cd, ab = codec.tokenizer.token_to_id("cd"), codec.tokenizer.token_to_id("▁ab")
    assert Detokenizer(codec).push(ab) == "ab"
    assert Detokenizer(codec, context=[cd]).push(ab) == " ab"


@pytest.mark.parametrize(
    ("make", "token", "text"),
    [
        (byte_codec, ord("A"), "A"),
        (byte_codec, 0xE2, "bytes:\\xe2"),
        (byte_codec, EOS, "<eos>"),
        (byte_codec, 9999, "token_id:9999"),
        (byte_fallback_codec, 3 + 0xE2, "bytes:\\xe2"),
        (byte_fallback_codec, 3 + ord("A"), "A"),
        (byte_fallback_codec, 0, "<unk>"),
    ],
)
def test_the_text_of_one_token(make, token, text):
    assert make().token_text(token) == text


def test_every_partial_byte_has_its_own_text():
    codec = byte_codec()
    assert len({codec.token_text(token) for token in range(256)}) == 256


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path):
    tokenizer = byte_codec().tokenizer
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=10)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextCodec.from_directory(tmp_path).encode("abcdef") == tuple(b"abcdef")


@pytest.mark.parametrize("content", [None, "", "{}", "[1"])
def test_a_missing_or_damaged_tokenizer_is_one_clear_line(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer") as error:
        TextCodec.from_directory(tmp_path)
    assert "\n" not in str(error.value)
