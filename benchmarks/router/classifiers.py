"""What is compared: Overtone's router, and two classifiers that anybody would try first."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.text.sources import ENCODER_PACKAGE, encoder_directory
from merge.router import RouterConfig, train_router

ENCODED_TOKENS = 64


class Classifier(Protocol):
    """A trained classifier of prompts."""

    @property
    def names(self) -> Sequence[str]:
        """The experts."""
        ...

    @property
    def threshold(self) -> float:
        """Probability of the best expert from which it is chosen; 0: always."""
        ...

    def probabilities_of(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[n, E] of each text and expert."""
        ...


Train = Callable[[Mapping[str, Sequence[str]]], Classifier]


def overtone(features: str, backbone: Path | None = None) -> Train:
    """The router as `overtone merge` trains it, with these features and its defaults."""

    def train(prompts: Mapping[str, Sequence[str]]) -> Classifier:
        config = RouterConfig.model_validate({"features": tuple(features.split("+"))})
        return train_router(prompts, config, backbone=backbone)

    return train


class TfIdf:
    """Scikit-learn's word TF-IDF with logistic regression, both with their defaults."""

    threshold = 0.0

    def __init__(self, prompts: Mapping[str, Sequence[str]]) -> None:
        """Train."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self._model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
        pairs = [(text, name) for name, texts in sorted(prompts.items()) for text in texts]
        self._model.fit([text for text, _ in pairs], [name for _, name in pairs])
        self.names: Sequence[str] = tuple(self._model.classes_)

    def probabilities_of(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[n, E]."""
        return np.asarray(self._model.predict_proba(list(texts)), dtype=np.float64)


class NearestCentroid:
    """MiniLM's mean vectors; the cosine with an expert's mean, scaled to 0 to 1, stands for its probability."""

    threshold = 0.0

    def __init__(self, prompts: Mapping[str, Sequence[str]]) -> None:
        """Encode the prompts."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        path = str(encoder_directory(Path()))  # installed: `classifiers` looks first
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self._model = AutoModel.from_pretrained(path, local_files_only=True, add_pooling_layer=False).eval()
        self.names: Sequence[str] = tuple(sorted(prompts))
        means = [self._encoded(prompts[name]).mean(axis=0) for name in self.names]
        self._centroids = np.stack([mean / np.linalg.norm(mean) for mean in means])

    def probabilities_of(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[n, E]."""
        return np.asarray((1.0 + self._encoded(texts) @ self._centroids.T) / 2, dtype=np.float64)

    def _encoded(self, texts: Sequence[str]) -> NDArray[np.float64]:
        rows = []
        for start in range(0, len(texts), 64):
            batch = self._tokenizer(
                list(texts[start : start + 64]),
                padding=True,
                truncation=True,
                max_length=ENCODED_TOKENS,
                return_tensors="pt",
            )
            with self._torch.inference_mode():
                states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            rows.append(self._torch.nn.functional.normalize(mean, dim=1).double().numpy())
        return np.concatenate(rows)


def classifiers(backbone: Path | None = None) -> dict[str, Train]:
    """What can be compared here, by the name in the rows' `features`.

    Args:
        backbone: a model directory whose hidden states are compared, too.
    """
    found: dict[str, Train] = {"ngram": overtone("ngram")}
    if importlib.util.find_spec(ENCODER_PACKAGE) is not None:
        found |= {name: overtone(name) for name in ("encoder", "ngram+encoder")}
        found["minilm-nearest-centroid"] = NearestCentroid
    if backbone is not None:
        found |= {name: overtone(name, backbone) for name in ("backbone", "ngram+backbone")}
    return found | {"tfidf-logistic-regression": TfIdf}
