from merge.router.phrasings import assign_folds, phrasing_keys

WORDS = ["lamp", "chair", "table", "river", "stone", "cloud", "apple", "bread", "glass", "horse", "mouse", "night"]
PHRASINGS = ["Spell {} backwards.", "Reverse the word {}", "What is {} in reverse?", "Turn {} around, please."]
PROMPTS = [phrasing.format(word) for phrasing in PHRASINGS for word in WORDS]


def test_the_wording_is_what_stays() -> None:
    keys = phrasing_keys(PROMPTS)
    assert len(set(keys)) == len(PHRASINGS)
    assert keys[0] == ("spell", "backwards.")


def test_a_wording_stays_in_one_fold() -> None:
    folds = assign_folds(PROMPTS, 4)
    for i in range(len(PHRASINGS)):
        assert len(set(folds[i * len(WORDS) : (i + 1) * len(WORDS)])) == 1
    assert set(folds) == {0, 1, 2, 3}


def test_fewer_wordings_than_folds_are_dealt_out() -> None:
    assert assign_folds([f"Spell {word} backwards." for word in WORDS], 4) == [i % 4 for i in range(len(WORDS))]
