import pytest

from merge.evaluate.metrics import METRICS


@pytest.mark.parametrize(
    ("metric", "reply", "answer", "right"),
    [
        ("exact", " Paris\n", "Paris", True),
        ("exact", "paris", "Paris", False),
        ("normalized", "The  capital, Paris!", "capital paris", True),
        ("normalized", "Paris, France", "Paris", False),
        ("contains", "The capital of France is Paris.", "paris", True),
        ("contains", "Comparison", "paris", False),
        ("contains", "Comparison is hard", "paris", False),
        ("regex", "on 2024-03-07", r"\d{4}-\d\d-\d\d$", True),
        ("regex", "on 7 March", r"\d{4}", False),
        ("json", '{"b": [1, 2], "a": null}', '{"a": null, "b": [1, 2]}', True),
        ("json", '```json\n{"a": 1}\n```', '{"a": 1}', True),
        ("json", '{"a": 1', '{"a": 1}', False),
        ("json", "[" * 100_000, "[]", False),
        ("number", "6 boxes with 7 each make 42.", "42", True),
        ("number", "1,234,567.0", "1234567", True),
        ("number", "-3", "3", False),
        ("number", "none", "0", False),
        ("choice", "(b) Paris", "B", True),
        ("choice", "B. Paris", "B", True),
        ("choice", "Berlin", "B", False),
    ],
)
def test_metrics(metric: str, reply: str, answer: str, right: bool):
    assert METRICS[metric](reply, answer) == right


@pytest.mark.parametrize(
    ("metric", "answer", "message"),
    [
        ("regex", "(", r"'\(' is not a valid regular expression"),
        ("json", "{", "the answer '{' is not valid JSON"),
        ("number", "many", "the answer 'many' has no number"),
        ("choice", "Paris", "the answer 'Paris' has no letter that stands alone"),
    ],
)
def test_an_answer_that_the_metric_cannot_read_is_an_error(metric: str, answer: str, message: str):
    with pytest.raises(ValueError, match=message):
        METRICS[metric]("reply", answer)


@pytest.mark.parametrize(
    ("reply", "answer", "score"),
    [("ls -l", "ls -l", 1.0), ("ls -a", "ls -l", 0.5), ("ls", "ls -l", 2 / 3), ("LS", "ls", 0.0), ("", "ls", 0.0)],
)
def test_overlap_is_the_f1_of_the_words(reply: str, answer: str, score: float):
    assert METRICS["overlap"](reply, answer) == pytest.approx(score)
