from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.quality.classifier import Sizes, Training
from benchmarks.quality.store import Store
from benchmarks.quality.text import encoder, sources, tasks
from benchmarks.quality.text.tasks import PER_TASK, SMALLEST_CLASS, TASKS, Labelled, load_task

GLOSS = '00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which exists; "an entity"  \n'


def test_a_gloss_comes_without_its_examples(tmp_path: Path) -> None:
    folder = tmp_path / "debian/wordnet-base/usr/share/wordnet"
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text("  1 a licence line | not a gloss\n" + GLOSS)
    assert list(sources.wordnet_glosses("noun", tmp_path)) == [("that which exists", 3)]


def test_docstrings_are_first_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        'def f():\n    """Does something\n    long enough.\n\n    More.\n    """\n\ndef g():\n    """Short."""\n'
    )
    assert list(sources._docstrings_of(file)) == ["Does something long enough."]
    file.write_text("def (:")
    assert list(sources._docstrings_of(file)) == []


def test_a_command_that_fails_says_which(tmp_path: Path) -> None:
    with pytest.raises(sources.SourceError, match="ls .* failed"):
        sources._run(["ls", str(tmp_path / "nowhere")])


def test_examples_are_balanced_distinct_and_split_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [(f"text {i}", "large") for i in range(2 * PER_TASK)]
    few = [(f"other {i}", "medium") for i in range(SMALLEST_CLASS)]
    both = [("text 1", "medium"), ("rare", "small")]
    monkeypatch.setitem(tasks._COLLECT, "noun_topic", lambda _: [*many, *few, *both])
    rest, test, classes = load_task("noun_topic", tmp_path)
    assert classes == ["large", "medium"]
    assert len(rest) + len(test) == PER_TASK // 2 + SMALLEST_CLASS
    assert not {item.text for item in rest} & {item.text for item in test}
    monkeypatch.setitem(tasks._COLLECT, "noun_topic", lambda _: [])
    assert load_task("noun_topic", tmp_path) == (rest, test, classes)


@pytest.fixture
def domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> encoder.TextDomain:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(30))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    source = tmp_path / "source"
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(source)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(source)
    monkeypatch.setattr(encoder, "encoder_directory", lambda _: source)
    texts = [
        Labelled(" ".join(f"w{(i * j) % 15 + 15 * (i % 2)}" for j in range(1, 2 + i % 7)), i % 2) for i in range(90)
    ]
    monkeypatch.setattr(encoder, "load_task", lambda *_: (texts[:60], texts[60:], ["even", "odd"]))
    monkeypatch.setattr(encoder, "foreign_texts", lambda count, _: [f"stranger {i}" for i in range(count)])
    return encoder.TextDomain(Store(tmp_path / "store"), Training(30, 20, 10, 1e-3), Sizes(30, 10, 20, 10))


def test_a_fine_tune_moves_the_layers_and_not_the_embeddings(domain: encoder.TextDomain) -> None:
    base, tuned = domain.base(), domain.fine_tune("verb_topic", 0)
    moved = {name for name in base.tensors if not torch.equal(base.tensor(name), tuned.tensor(name))}
    assert moved
    assert not any(name.startswith("embeddings.") for name in moved)
    weights = {name: tuned.tensor(name) for name in tuned.tensors}
    marks = domain.answers(weights, "verb_topic", 0, "test")
    assert len(marks) == 20
    assert sum(marks) >= 18


def test_answers_are_in_the_order_of_the_texts(domain: encoder.TextDomain) -> None:
    batches = domain.batches("verb_topic", 0, "test", 20, 6)
    places = torch.cat([batch.places for batch in batches])
    assert sorted(places.tolist()) == list(range(20))
    labels = torch.empty(20, dtype=torch.int64)
    for batch in batches:
        labels[batch.places] = batch.labels
    assert labels.tolist() == [i % 2 for i in range(60, 80)]


def test_a_calibrated_expert_brings_the_features_nearer(domain: encoder.TextDomain) -> None:
    base = {name: domain.base().tensor(name) for name in domain.base().tensors}
    tuned = domain.fine_tune("verb_topic", 0)
    expert = domain.calibrated(base, "verb_topic", 0, 0.3)
    fitted = {**base, **{name: base[name] + delta for name, delta in expert.dense.items()}}
    for name, index in expert.index.items():
        fitted[name] = base[name].scatter_add(1, index, expert.value[name])
    wanted = features(domain, {name: tuned.tensor(name) for name in base})
    assert len(expert.index) == 6
    assert float((features(domain, fitted) - wanted).norm()) < 0.7 * float((features(domain, base) - wanted).norm())


def features(domain: encoder.TextDomain, weights: Mapping[str, Tensor]) -> Tensor:
    module = domain.build()
    module.train(False)
    module.load_state_dict(weights, strict=False)
    with torch.no_grad():
        return torch.cat([domain.features(module, batch.inputs) for batch in domain.batches("x", 0, "test", 20, 6)])


def test_the_losss_gradient_is_that_of_its_mean(domain: encoder.TextDomain) -> None:
    loss = domain.objective(["noun_topic", "verb_topic"], 0)
    torch.manual_seed(1)
    stored = domain.base()
    weights = {name: stored.tensor(name) for name in stored.tensors if not domain.is_aside(name)}
    weights = {name: tensor + 0.2 * torch.randn_like(tensor) for name, tensor in weights.items()}
    value, gradient = loss.loss_and_gradient(weights)
    kept = {name: tensor.clone() for name, tensor in gradient.items()}
    assert value == pytest.approx(loss.loss(weights), rel=1e-2)
    assert loss.loss({name: tensor - 0.01 * kept[name] for name, tensor in weights.items()}) < value
    first = {name: g.clone() for name, g in loss.loss_and_gradient(weights, "noun_topic")[1].items()}
    second = loss.loss_and_gradient(weights, "verb_topic")[1]
    for name, whole in kept.items():
        half = (first[name] + second[name]) / 2
        assert float((whole - half).norm()) <= 0.05 * float(half.norm()) + 1e-4


def test_requests_are_tested_in_wordings_that_were_held_out(domain: encoder.TextDomain) -> None:
    found = domain.requests(0)
    assert set(found.train) == set(found.test) == {task.name for task in TASKS}
    for task in TASKS:
        starts = {template.split("{}")[0] for template in task.request[-encoder.HELD_OUT :]}
        assert not any(prompt.startswith(start) for prompt in found.train[task.name] for start in starts)
        assert len(found.test[task.name]) == 20
    assert len(found.foreign) == 20
