"""What only reading the weights can tell."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.check import CheckError, check_recipe, checked_inputs
from merge.checkpoint import open_checkpoint
from merge.lora import AdaptedCheckpoint, open_adapter
from tests.merge.check.conftest import edit_tensors, errors, told, warnings, write_recipe
from tests.merge.lora.adapters import Q, factors, write_adapter


def test_values_that_are_not_finite_are_named_and_counted(models: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")
        tensors["lm_head.weight"][0, :5] = float("inf")

    edit_tensors(models / "two", spoil)
    edit_tensors(models / "base", lambda tensors: tensors["model.norm.weight"].mul_(float("nan")))
    found = errors(models)
    assert len(found) == 3
    text = " | ".join(found)
    assert "models.two: " in text
    assert "model.norm.weight holds 1 NaN or infinite values of 32" in text
    assert "lm_head.weight holds 5 NaN or infinite values of 1056" in text
    assert "base: " in text
    assert "model.norm.weight holds 32 NaN" in text
    assert errors(models, quick=True) == []


def test_the_figures_are_those_of_the_whole_models(models: Path) -> None:
    base, one = (open_checkpoint(models / name) for name in ("base", "one"))
    names = [name for name in base.tensors if len(base.tensors[name].shape) > 1]

    def flat(model: object) -> torch.Tensor:
        return torch.cat([model.tensor(name).double().flatten() for name in names])  # type: ignore[attr-defined]

    origin, tuned = flat(base), flat(one)
    lineage = check_recipe(models / "recipe.yml").lineages["one"]
    assert lineage.relative_norm == pytest.approx(float((tuned - origin).norm() / origin.norm()), rel=1e-4)
    assert lineage.cosine_to_base == pytest.approx(float(tuned @ origin / tuned.norm() / origin.norm()), rel=1e-4)
    assert lineage.nearest == "two"
    vectors = [flat(open_checkpoint(models / name)) - origin for name in ("one", "two")]
    cosine = float(vectors[0] @ vectors[1] / vectors[0].norm() / vectors[1].norm())
    assert lineage.nearest_cosine == pytest.approx(cosine, abs=1e-5)


def test_what_a_lora_leaves_alone_is_counted_without_being_read(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_checkpoint(models / "base")
    for seed, name in enumerate(("a", "b")):
        write_adapter(models / name, factors(Q, 32, 32, seed=seed))
    write_recipe(models, models=[{"model": "a"}, {"model": "b"}])
    read: list[str] = []
    whole = AdaptedCheckpoint.tensor

    def watched(self: AdaptedCheckpoint, name: str, *more: Any, **named: Any) -> torch.Tensor:
        read.append(name)
        return whole(self, name, *more, **named)

    monkeypatch.setattr(AdaptedCheckpoint, "tensor", watched)
    lineage = check_recipe(models / "recipe.yml", quick=False).lineages["a"]
    monkeypatch.undo()
    assert set(read) <= {f"{Q}.weight"}
    matrices = [base.tensor(name).double() for name, info in base.tensors.items() if len(info.shape) > 1]
    square = sum(float(matrix.square().sum()) for matrix in matrices)
    adapter = open_adapter(models / "a", base)
    origin, tuned = base.tensor(f"{Q}.weight").double(), adapter.tensor(f"{Q}.weight").double()
    change = float((tuned - origin).square().sum())
    own = square + float(tuned.square().sum() - origin.square().sum())
    dot = square + float(((tuned - origin) * origin).sum())
    assert lineage.relative_norm == pytest.approx(math.sqrt(change / square), rel=1e-4)
    assert lineage.cosine_to_base == pytest.approx(dot / math.sqrt(own * square), rel=1e-5)


def test_a_model_of_another_base_is_refused_with_its_figures(models: Path) -> None:
    write_recipe(models, models=[{"model": "one"}, {"model": "stranger"}])
    report = check_recipe(models / "recipe.yml")
    (wrong,) = told(report, "error")
    assert wrong.startswith("models.stranger: it is 1.4")
    assert "not tuned from this base" in wrong
    assert report.lineages["stranger"].relative_norm == pytest.approx(math.sqrt(2), abs=0.1)


def test_fine_tunes_of_another_base_give_themselves_away(models: Path) -> None:
    """Both carry the step from the base named to the base that they were tuned from."""
    step = {n: 0.5 * t.std() * torch.randn_like(t) for n, t in _tensors(models / "base").items() if "_proj" in n}
    for name in ("one", "two"):
        edit_tensors(models / name, lambda tensors: tensors.update({n: tensors[n] + step[n] for n in step}))
    assert errors(models) == []
    found = warnings(models)
    assert len(found) == 2
    assert "has a cosine of 0." in found[0]
    assert "another base" in found[0]


def _tensors(model: Path) -> dict[str, torch.Tensor]:
    opened = open_checkpoint(model)
    return {name: opened.tensor(name) for name in opened.tensors}


def test_a_model_that_is_the_base_is_told(models: Path) -> None:
    write_recipe(models, models=[{"model": "base", "name": "same"}, {"model": "one"}])
    assert warnings(models) == ["models.same: it equals the base in every merged matrix: there is nothing to merge"]


def test_merging_runs_what_needs_no_weights(models: Path) -> None:
    write_recipe(models, models=[{"model": "absent"}, {"model": "gone"}])
    with pytest.raises(CheckError) as caught:
        checked_inputs(models / "recipe.yml", models / "out")
    assert len(caught.value.findings) == 2
    assert "\n" not in str(caught.value)


def test_what_an_expert_leaves_out_is_told_with_its_share(models: Path) -> None:
    base, one = _tensors(models / "base"), _tensors(models / "one")
    head = base["lm_head.weight"] + 0.01
    edit_tensors(models / "one", lambda tensors: tensors.update({"lm_head.weight": head}))
    kept = sum(float((one[name] - base[name]).square().sum()) for name in base if base[name].ndim == 2)
    lost = float((head - base["lm_head.weight"]).square().sum())
    assert warnings(models) == [], "experts of a budget hold embeddings and head as well"
    write_recipe(models, experts={"density": 0.1})
    (warned,) = warnings(models)
    assert warned.startswith(f"models.one: {lost / (kept + lost):.0%} of its change (of ‖τ‖²) is in ")
    assert "lm_head.weight, model.embed_tokens.weight, which its expert does not include; `exclude: []`" in warned
    _, told_by_merge = checked_inputs(models / "recipe.yml", models / "out")
    assert [str(finding) for finding in told_by_merge] == [f"warning: {warned}"], "so few matrices are all read"
    write_recipe(models, experts={"density": 0.1, "exclude": []})
    assert warnings(models) == []


def test_merging_warns_of_another_base(models: Path) -> None:
    write_recipe(models, models=[{"model": "one"}, {"model": "stranger"}])
    _, warned = checked_inputs(models / "recipe.yml", models / "out")
    assert all(finding.severity == "warning" for finding in warned)
    assert any("was not tuned from this base" in str(finding) for finding in warned)


def test_a_sample_estimates_the_whole(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_tensors(models / "one", lambda tensors: tensors["lm_head.weight"].add_(0.01))
    write_recipe(models, experts={"form": "sparse"})
    share = float(warnings(models)[0].split(": ")[1].partition("%")[0])
    monkeypatch.setattr("merge.check.weights.SAMPLED", 5)
    _, (warned,) = checked_inputs(models / "recipe.yml", models / "out")
    assert "(estimated from 5 of 14 matrices)" in warned.message
    assert float(warned.message.partition("%")[0]) == pytest.approx(share, rel=0.3)
