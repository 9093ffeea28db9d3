import dataclasses
from pathlib import Path

import numpy as np
import pytest

from merge.bundle import BundleError, EncodedFeatures, load_router, save_router
from merge.router import RouterConfig, add_expert, train_router
from merge.router.features import make_features, training_rows, unwhitened
from merge.router.heads import sparse_rows
from serve.router import Router
from tests.merge.bundle.encoders import write_encoder
from tests.merge.router.test_training import HELD_OUT, PHRASINGS, prompts


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def config(directory: Path) -> RouterConfig:
    return RouterConfig(features=("ngram", "encoder"), encoder=directory, bits=10, max_tokens=32, landmarks=40)


@pytest.fixture(scope="module")
def model(config: RouterConfig):
    return train_router({task: prompts(task) for task in ("reverse", "sort")}, config)


def test_the_router_with_an_encoder_finds_experts(model) -> None:
    for task in model.names:
        chances = model.probabilities(HELD_OUT[task].format("garden"))
        assert model.names[int(chances.argmax())] == task


def test_the_files_bring_the_encoder(tmp_path: Path, model) -> None:
    save_router(tmp_path, model)
    assert {path.name for path in (tmp_path / "encoder").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    loaded = load_router(tmp_path)
    assert loaded.featurizer == model.featurizer
    texts = ["Sort the letters of lamp", "something else"]
    np.testing.assert_allclose(loaded.probabilities_of(texts), model.probabilities_of(texts), atol=1e-6)
    (tmp_path / "encoder" / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="no readable encoder"):
        load_router(tmp_path)


def test_rows_of_landmarks_have_the_kernel_as_their_product(config: RouterConfig) -> None:
    tasks = [prompts(task)[:10] for task in PHRASINGS]
    features = make_features(tasks, [], encoder_alone(config), None)
    assert isinstance(features, EncodedFeatures)
    assert features.counted == 0
    texts = list(dict.fromkeys(text for task in tasks for text in task))
    rows = sparse_rows(training_rows(features, texts), features.size).toarray()
    vectors = features.vectors(texts)
    kernel = np.exp(-features.width * np.maximum(2 - 2 * vectors @ vectors.T, 0))
    np.testing.assert_allclose(rows @ rows.T, 4 * kernel, atol=0.1)
    weight = np.random.default_rng(0).normal(size=(2, features.size)).astype(np.float32)
    plain = sparse_rows(features.rows(texts), features.size) @ unwhitened(features, weight).T
    np.testing.assert_allclose(plain, rows @ weight.T, atol=1e-3)


def encoder_alone(config: RouterConfig) -> RouterConfig:
    return config.model_copy(update={"features": ("encoder",)})


def test_a_new_expert_leaves_the_others_untouched(model) -> None:
    more = add_expert(model, "upper", prompts("upper"), prompts("sort") + prompts("reverse"))
    np.testing.assert_array_equal(more.weight[:2], model.weight)
    assert more.names[int(more.probabilities(HELD_OUT["upper"].format("garden")).argmax())] == "upper"


def test_a_head_comes_with_its_landmarks(model, config: RouterConfig) -> None:
    other = train_router({task: prompts(task) for task in ("upper", "sort")}, config)
    joined = Router(model).with_head_of(other, "upper").model
    assert joined.names == ("reverse", "sort", "upper")
    assert len(joined.featurizer.landmarks) == 80

    def logits(router, name: str) -> np.ndarray:
        texts = [HELD_OUT[task].format("river") for task in PHRASINGS]
        chances = router.probabilities_of(texts)
        return np.log(chances[:, router.names.index(name)] / (1 - chances.sum(axis=1)))

    np.testing.assert_allclose(logits(joined, "upper"), logits(other, "upper"), atol=1e-3)
    np.testing.assert_allclose(logits(joined, "sort"), logits(model, "sort"), atol=1e-3)
    narrow = dataclasses.replace(other, featurizer=dataclasses.replace(other.featurizer, width=1.0))
    with pytest.raises(ValueError, match="another featurizer"):
        Router(model).with_head_of(narrow, "upper")


def test_the_backbone_as_encoder(tmp_path: Path) -> None:
    (tmp_path / "router").mkdir()
    backbone = write_encoder(tmp_path / "backbone")
    settings = RouterConfig(features="backbone", layers=(1,), max_tokens=32, copies=0, decoys=0)
    with pytest.raises(ValueError, match="needs the bundle"):
        train_router({task: prompts(task) for task in PHRASINGS}, settings)
    model = train_router({task: prompts(task) for task in PHRASINGS}, settings, backbone=backbone)
    save_router(tmp_path / "router", model)
    assert sorted(path.name for path in (tmp_path / "router").iterdir()) == ["router.json", "router.safetensors"]
    text = ["Sort the letters of lamp"]
    np.testing.assert_allclose(
        load_router(tmp_path / "router").probabilities_of(text), model.probabilities_of(text), atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ["encoder", "backbone"]}, "are mutually exclusive"),
        ({"features": ["ngram", "ngram"]}, "each once"),
        ({"features": "ngram", "encoder": "x"}, "do not name it"),
        ({"max_foreign_routed": "5 %"}, "needs foreign"),
        ({"max_foreign_routed": 0.1, "foreign": "x", "threshold": 0.5}, "are mutually exclusive"),
        ({"max_unrouted": "2 %", "threshold": 0.5}, "threshold and max_unrouted are mutually exclusive"),
        ({"max_unrouted": 0.02, "max_foreign_routed": 0.1, "foreign": "x"}, "are mutually exclusive"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RouterConfig.model_validate(settings)


def test_shares_may_be_percentages() -> None:
    assert RouterConfig.model_validate({"max_foreign_routed": "5 %", "foreign": "x"}).max_foreign_routed == 0.05
