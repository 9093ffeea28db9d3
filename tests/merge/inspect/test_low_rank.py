"""Bundles whose experts have low-rank parts."""

import json
from pathlib import Path

import pytest
import torch

from merge.bundle import Expert, LowRankDelta, SparseDelta, open_bundle
from merge.inspect import html_page, inspect_bundle, take_pictures
from merge.inspect.layers import layer_and_kind, rank_lines, ranks_by_layer
from merge.inspect.origin import form_in_words
from merge.inspect.similarity import compare_experts, dense_residual
from merge.progress import Progress
from merge.run import merge_recipe
from tests.merge.export.bundles import NORMS, UP, WEIGHTS, factors, write
from tests.merge.tiny import save_fine_tune, save_tiny

KEY = "layer.weight"


def expert(name: str, seed: int, sparse: bool, low_rank: bool) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(9, generator=generator)[:3].sort().values for _ in range(6)])
    values = SparseDelta(index.to(torch.uint16), torch.randn(6, 3, generator=generator).to(torch.bfloat16))
    product = LowRankDelta(
        torch.randint(-127, 128, (2, 9), generator=generator, dtype=torch.int8),
        torch.randint(-127, 128, (6, 2), generator=generator, dtype=torch.int8),
        torch.rand(2, generator=generator) * 1e-4,
    )
    return Expert(name, "digest", 0.0, {KEY: values} if sparse else {}, {}, {}, {KEY: product} if low_rank else {})


def test_cosines_are_those_of_the_whole_residuals() -> None:
    experts = {
        "both": expert("both", 0, sparse=True, low_rank=True),
        "product": expert("product", 1, sparse=False, low_rank=True),
        "sparse": expert("sparse", 2, sparse=True, low_rank=False),
    }
    cosine, overlap = compare_experts(experts)
    whole = torch.stack([dense_residual(experts[name], KEY, 9).flatten() for name in cosine.names])
    expected = torch.nn.functional.cosine_similarity(whole[:, None], whole[None], dim=2)
    torch.testing.assert_close(torch.tensor(cosine.values), expected, rtol=0, atol=1e-5)
    assert overlap.values[0][1] == overlap.values[1][1] == 0
    assert overlap.values[0][2] > 0


def test_ranks_are_told(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    for seed, name in enumerate(("one", "two")):
        save_fine_tune(base, tmp_path / name, seed, size=0.3)
    recipe = {
        "name": "tiny", "base_model": "base", "merge_method": "linear", "models": [{"model": "one"}, {"model": "two"}],
        "experts": {"form": "low_rank", "budget": 0.1},
    }  # fmt: skip
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    merge_recipe(tmp_path / "recipe.yml", tmp_path / "bundle", progress=False)
    found = inspect_bundle(open_bundle(tmp_path / "bundle"))
    for item in found.experts:
        assert item.ranks is not None
        assert 1 <= item.ranks[0] <= item.ranks[1]
        assert item.storage == "int8"
        assert item.density == 0
    assert found.similarity.values[0][1] < 0, "what two models are apart from their mean points both ways"
    text = found.as_text()
    assert "rank" in text
    assert "fitted to the weights, budget 10 %" in text
    assert "density" not in text, "no expert has a sparse part"
    assert sum(item.bytes for item in found.parameters) == pytest.approx(found.experts[0].bytes, rel=0.3)


Q = WEIGHTS[2]


@pytest.mark.parametrize(
    ("weights", "low_rank", "norms", "form", "ranks"),
    [
        ((UP,), {}, NORMS, "sparse", None),
        ((), {UP: 2, Q: 5}, NORMS, "low_rank", (2, 5)),
        ((UP,), {Q: 3}, NORMS, "both", (3, 3)),
        ((), {}, NORMS, "none", None),
    ],
)
def test_the_form_of_an_expert(
    weights: tuple[str, ...],
    low_rank: dict[str, int],
    norms: tuple[str, ...],
    form: str,
    ranks: tuple[int, int] | None,
    tmp_path: Path,
) -> None:
    shapes = {UP: (48, 32), Q: (32, 32)}
    parts = {name: factors(*shapes[name], rank) for name, rank in low_rank.items()}
    found = inspect_bundle(write(tmp_path / "bundle", weights=weights, low_rank=parts, norms=norms).bundle)
    (item,) = found.experts
    assert (item.form, item.ranks, dict(item.rank_of)) == (form, ranks, low_rank)
    assert item.low_rank_bytes == sum(rank * (2 * sum(shapes[name]) + 4) for name, rank in low_rank.items())
    assert {one.name: one.rank for one in found.parameters if one.rank is not None} == low_rank
    assert form_in_words(form) in found.as_text()
    assert json.loads(json.dumps(found.as_json()))["experts"][0]["rank_of"] == low_rank
    page = html_page(found, take_pictures(open_bundle(tmp_path / "bundle"), Progress(False)))
    assert ("Ranks" in page) == bool(low_rank)
    assert (">rank in layer" in page, "Overlap of the experts" in page) == (False, bool(weights))
    for name, rank in low_rank.items():
        layer, kind = layer_and_kind(name)
        assert kind in page
        if form == "low_rank":
            assert f"\n{layer:<13}  {rank:>7}" in found.as_text()


def test_ranks_by_layer() -> None:
    ranks = {
        "model.layers.10.a.weight": 4,
        "model.layers.2.a.weight": 1,
        "model.layers.2.b.weight": 9,
        "lm_head.weight": 2,
    }
    assert ranks_by_layer(ranks) == {"10": (4, 4), "2": (1, 9), "lm_head": (2, 2)}
    lines = rank_lines({"one": ranks, "lora": {"model.layers.2.a.weight": 8, "model.layers.3.a.weight": 8}})
    assert lines == [
        "rank in layer      one",
        "2                  1-9",
        "10                   4",
        "lm_head              2",
    ]
    assert rank_lines({f"e{n}": ranks for n in range(9)}) == []
