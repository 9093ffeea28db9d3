from merge.router.phrasings import assign_folds, phrasing_keys

WORDS = ["lamp", "chair", "table", "river", "stone", "cloud", "apple", "bread", "glass", "horse", "mouse", "night"]
PHRASINGS = ["Spell {} backwards.", "Reverse the word {}", "What is {} in reverse?", "Turn {} around, please."]
PROMPTS = [phrasing.format(word) for phrasing in PHRASINGS for word in WORDS]


def test_the_wording_is_what_stays() -> None:
    keys = phrasing_keys(PROMPTS)
    assert len(set(keys)) == len(PHRASINGS)
    assert keys[0] == (("spell",), ("backwards.",))


def test_contents_that_are_text_do_not_split_a_wording() -> None:
    names = [f"{first}{second}lo" for first in "abcdefghij" for second in "klmnopqrst"]
    contents = [f"{'' if i % 3 else 'a '}{name} of the {name[::-1]}" for i, name in enumerate(names)]
    wordings = ["What is {} called?", "Name this: {}", "Give the word for {}", "The gloss says '{}'. Which word?"]
    keys = phrasing_keys([wordings[i % 4].format(content) for i, content in enumerate(contents)])
    assert [len(set(keys[i::4])) for i in range(4)] == [1, 1, 1, 1]
    assert len(set(keys)) == 4


def test_numbers_are_content() -> None:
    keys = phrasing_keys([f"Shift {word} by {i % 3}." for i, word in enumerate(WORDS)])
    assert set(keys) == {(("shift",), ("by", "0."))}


def test_a_wording_stays_in_one_fold() -> None:
    folds = assign_folds(PROMPTS, 4)
    for i in range(len(PHRASINGS)):
        assert len(set(folds[i * len(WORDS) : (i + 1) * len(WORDS)])) == 1
    assert set(folds) == {0, 1, 2, 3}


def test_fewer_wordings_than_folds_make_fewer_folds() -> None:
    folds = assign_folds(PROMPTS[: 2 * len(WORDS)], 4)
    assert folds == [folds[0]] * len(WORDS) + [1 - folds[0]] * len(WORDS)


def test_prompts_of_one_wording_are_dealt_out() -> None:
    assert assign_folds([f"Spell {word} backwards." for word in WORDS], 4) == [i % 4 for i in range(len(WORDS))]


def test_a_prompt_that_others_begin_with() -> None:
    keys = phrasing_keys(["what time is it", *(f"what time is it {where}" for where in ("here", "now", "now", "here"))])
    assert keys[0] == (("what", "time", "is", "it"), ())
