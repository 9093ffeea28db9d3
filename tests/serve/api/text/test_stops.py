import pytest

from serve.api.text.choice import Match, StopSearch


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["END"], "abcENDdef", Match("END", 3)),
        (["END"], "abcEN", None),
        (["b", "abc"], "xabc", Match("b", 2)),  # "b" is complete first
        (["ab", "b"], "xab", Match("ab", 1)),  # complete together: the longer one
        (["aab"], "aaab", Match("aab", 1)),
        ([], "anything", None),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_cut_does_not_depend_on_where_pieces_end(stops, text, expected, size):
    search, seen = StopSearch(stops), ""
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        seen += piece
        if (match := search.find(seen, len(piece))) is not None:
            assert match == expected
            return
    assert expected is None


def test_an_included_stop_string_stays():
    assert StopSearch(["END"], include=True).find("abcENDdef", 9) == Match("END", 6)


def test_a_match_lies_after_the_start():
    search = StopSearch(["ab"])
    assert search.find("abab", 4, start=1) == Match("ab", 2)
    assert search.find("ab", 2, start=1) is None


@pytest.mark.parametrize(
    ("text", "safe"), [("abc", 3), ("abcE", 3), ("abcEN", 3), ("abcEX", 5), ("EE", 1), ("", 0), ("abcEND", 6)]
)
def test_only_what_may_become_a_stop_string_is_held_back(text, safe):
    assert StopSearch(["END"]).safe_length(text) == safe


def test_the_longest_possible_beginning_is_held_back():
    assert StopSearch(["aab", "b"]).safe_length("xaa") == 1


def test_nothing_before_the_start_is_held_back():
    assert StopSearch(["END"]).safe_length("EN", start=2) == 2


def test_many_stop_strings_are_found_as_few_are():
    stops = [f"{'a' * length}b" for length in range(1, 64)] + ["zz"]
    search = StopSearch(stops)
    text = "x" + "a" * 100
    assert search.safe_length(text) == 101 - 63
    assert search.safe_length(text + "z") == 101
    assert search.find(text + "b", 1) == Match("a" * 63 + "b", 101 - 63)
