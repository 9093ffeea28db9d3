"""A bundle that speaks: the byte-level tokenizer, a random model over its tokens, two experts, a router."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from transformers import PreTrainedModel

from merge.bundle import (
    BundleWriter,
    Expert,
    Featurizer,
    ManifestFields,
    RouterModel,
    backbone_digest,
    open_bundle,
    save_router,
    write_expert,
)
from tests.merge.bundle.test_router_model import dense
from tests.serve.api.fakes import EOS, byte_codec
from tests.serve.conftest import TinyBundle, random_expert, random_model

MAX_MODEL_LEN = 256
TOPICS = {"sql": "SELECT name FROM table WHERE age = 1", "poetry": "O sweet rose, softer than moonlight"}


def topic_router() -> RouterModel:
    """Knows a text by its likeness to each expert's topic."""
    featurizer = Featurizer(bits=12)
    weight = np.stack([dense(featurizer, text) for text in TOPICS.values()])
    bias = np.zeros(len(TOPICS), dtype=np.float32)
    return RouterModel(tuple(TOPICS), weight, bias, offset=0.3, temperature=0.05, threshold=0.5, featurizer=featurizer)


def write_speaking_bundle(
    path: Path,
    router: bool = True,
    name: str = "speaker",
    sampling: Mapping[str, float] = MappingProxyType({}),
    more: Callable[[PreTrainedModel, str], Sequence[Expert]] = lambda *_: (),
) -> TinyBundle:
    """Write one, whose generation_config.json recommends `sampling`, with the experts that `more` cuts, too."""
    model = random_model(vocab_size=EOS + 1, eos_token_id=EOS, max_position_embeddings=MAX_MODEL_LEN)
    with BundleWriter(path) as staging:
        backbone = staging.path / "backbone"
        model.save_pretrained(backbone)
        generation = backbone / "generation_config.json"
        generation.write_text(json.dumps({**json.loads(generation.read_text()), **sampling}))
        byte_codec().tokenizer.save(str(backbone / "tokenizer.json"))
        digest = backbone_digest(backbone)
        experts = [random_expert(model, digest, name, seed) for seed, name in enumerate(TOPICS)]
        experts += more(model, digest)
        for expert in experts:
            write_expert(staging.path / "experts" / f"{expert.name}.safetensors", expert)
        if router:
            save_router(staging.path / "router", topic_router())
        staging.finish(ManifestFields(name=name, created="2026-01-01T00:00:00+00:00"))
    return TinyBundle(open_bundle(path), model, {expert.name: expert for expert in experts})
