import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from merge.bundle import TemplateText, open_bundle
from merge.check import CheckError
from merge.check.general import GeneralAbility
from merge.checkpoint import CheckpointError, open_checkpoint
from merge.lora import open_adapter
from merge.run import merge_recipe
from tests.merge.lora.adapters import Q, factors, write_adapter
from tests.merge.tiny import save_fine_tune, save_tiny

pytestmark = pytest.mark.usefixtures("fork_server")

WORDS = ["cat", "dog", "fox", "hen", "owl", "bee", "ant", "cow"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("inputs")
    base = save_tiny(root / "base", dtype=torch.bfloat16)
    for seed, name in enumerate(("one", "two")):
        save_fine_tune(base, root / name, seed, size=0.3)
    prompts = [{"task": task, "prompt": f"{task} {word}."} for task in ("one", "two") for word in WORDS]
    (root / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in prompts))
    return root


def recipe(inputs: Path, name: str, **changes: object) -> Path:
    document = {
        "name": "tiny",
        "base_model": "base",
        "merge_method": "fr",
        "models": [{"model": "one"}, {"model": "two", "parameters": {"weight": 0.5}}],
        "experts": {"density": 0.05, "distill": 3},
        "calibration": {"file": "prompts.jsonl", "per_task": 6, "answer_tokens": 5},
        **changes,
    }
    path = inputs / f"{name}.yml"
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    return path


def test_a_recipe_becomes_a_bundle(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(inputs, "whole")
    report = merge_recipe(path, tmp_path / "out")
    bundle = open_bundle(tmp_path / "out", verify=True)
    assert bundle.manifest.name == "tiny"
    assert bundle.expert_names == ("one", "two")
    assert bundle.router_dir is not None
    assert (bundle.path / "recipe.yml").read_bytes() == path.read_bytes()
    assert set(bundle.manifest.inputs) == {"base", "models/one", "models/two"}
    assert set(bundle.manifest.versions) >= {"torch", "safetensors"}
    card = (bundle.path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "| one |" in card
    LlamaForCausalLM.from_pretrained(bundle.backbone_dir)

    assert report.bundle == tmp_path / "out"
    assert report.router
    assert [item.name for item in report.experts] == ["one", "two"]
    for item in report.experts:
        listed = bundle.manifest.experts[[card.name for card in bundle.manifest.experts].index(item.name)]
        assert (item.nnz, item.bytes) == (listed.nnz, listed.bytes)
        assert item.density == pytest.approx(2 / 32, abs=0.01)
        assert item.share == pytest.approx(item.bytes / report.backbone_bytes)
        assert item.divergence is not None
        assert item.divergence[1] < item.divergence[0]
    out, err = capsys.readouterr()
    assert not out
    assert "expert one: " in err


def files_of(bundle: Path) -> dict[Path, bytes]:
    """The bytes of every file of a bundle."""
    return {file.relative_to(bundle): file.read_bytes() for file in bundle.rglob("*") if file.is_file()}


def test_ray_tasks_give_the_bytes_of_one_worker(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    # Of one expert: a task with prompts imports transformers.
    lines = [line for line in (inputs / "prompts.jsonl").read_text().splitlines() if json.loads(line)["task"] == "one"]
    (inputs / "one.jsonl").write_text("\n".join(lines))
    calibration = {"file": "one.jsonl", "per_task": 6, "answer_tokens": 5}
    path = recipe(inputs, "repeat", models=[{"model": "one"}], calibration=calibration)
    merge_recipe(path, tmp_path / "alone", progress=False)
    program = "from serve.cli import main; main()"
    command = [sys.executable, "-c", program, "merge", str(path), str(tmp_path / "tasks"), "--ray", "--no-progress"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert files_of(tmp_path / "alone") == files_of(tmp_path / "tasks")


def test_without_prompts_there_are_data_free_experts_and_no_router(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rescale in ("code", "paper", 4.0):
        path = recipe(inputs, "free", calibration=None, experts={"density": 0.05, "rescale": rescale})
        report = merge_recipe(path, tmp_path / "out", overwrite=True, progress=False)
        bundle = open_bundle(tmp_path / "out")
        assert bundle.router_dir is None
        assert not report.router
        assert "No calibration prompts" in report.notes[0]
        assert report.experts[0].divergence is None
        assert bundle.read_expert("one").metadata["values"] == "rescaled"
        factor = report.experts[0].factor
        assert factor is not None
        assert bundle.read_expert("one").metadata["factor"] == f"{factor:.4g}"
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"| {factor:.3g} |" in card
        assert f"- expert one: μ is {factor:.3g}: above 2" in card
        assert any(note.startswith("recipe: experts.rescale") for note in report.notes)
    assert capsys.readouterr() == ("", "")


def test_prompts_are_chat_requests_where_there_is_a_template(inputs: Path, tmp_path: Path) -> None:
    root = tmp_path / "inputs"
    shutil.copytree(inputs, root)
    (root / "base" / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}. {{ m.content }} {% endfor %}"
    )
    lines = [json.loads(line) for line in (root / "prompts.jsonl").read_text().splitlines()]
    chats = [{"task": x["task"], "messages": [{"role": "user", "content": x["prompt"]}], "id": 1} for x in lines]
    (root / "chats.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in chats))
    rendered = [{**line, "prompt": f"user. {line['prompt']} "} for line in lines]
    (root / "rendered.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in rendered))
    digests, routers = {}, {}
    for name, form in (("prompts", "auto"), ("chats", "auto"), ("rendered", "none"), ("plain", "none")):
        calibration = {"file": f"{'prompts' if name == 'plain' else name}.jsonl", "chat_template": form, "per_task": 6}
        merge_recipe(
            recipe(root, name, calibration={**calibration, "answer_tokens": 5}), tmp_path / name, progress=False
        )
        digests[name] = (tmp_path / name / "experts" / "one.safetensors").read_bytes()
        routers[name] = next((tmp_path / name / "router").glob("*.safetensors")).read_bytes()
    assert digests["prompts"] == digests["chats"] == digests["rendered"] != digests["plain"]
    assert routers["prompts"] == routers["chats"] == routers["plain"] != routers["rendered"]


def test_an_expert_keeps_the_generation_settings_of_its_fine_tune(inputs: Path, tmp_path: Path) -> None:
    root = tmp_path / "inputs"
    shutil.copytree(inputs, root)
    (root / "base" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    mine = "{{ bos_token }}{% for m in messages %}{{ m.role }}. {{ m.content }}{% endfor %}"
    (root / "one" / "chat_template.jinja").write_text(mine)
    (root / "one" / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.5}')
    calibration = {"file": "prompts.jsonl", "per_task": 6, "answer_tokens": 5}
    report = merge_recipe(recipe(root, "own", calibration=calibration), tmp_path / "out", progress=False)
    bundle = open_bundle(tmp_path / "out")
    own = bundle.read_expert("one").settings
    assert (own.end_tokens, own.sampling) == ((2, 7), {"temperature": 0.5})
    assert own.chat_template == TemplateText(mine, {"bos_token": "<bos>"})
    assert not bundle.read_expert("two").settings
    told = [note for note in report.notes if "requests of this expert follow its own" in note]
    assert len(told) == 3
    assert all(note.startswith("models.one: ") for note in told)
    # Its expert was cut with prompts in its own template: as if they had been written so.
    lines = [json.loads(line) for line in (root / "prompts.jsonl").read_text().splitlines()]
    rendered = [{**x, "prompt": f"user. {x['prompt']}"} if x["task"] == "one" else x for x in lines]
    (root / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in rendered))
    plain = {**calibration, "chat_template": "none"}
    merge_recipe(recipe(root, "plain", calibration=plain), tmp_path / "plain", progress=False)
    first, second = (load_file(tmp_path / name / "experts" / "one.safetensors") for name in ("out", "plain"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_prompts_for_the_router_alone_leave_the_experts_data_free(inputs: Path, tmp_path: Path) -> None:
    # No exclude: the embedding's change is in the experts, and there is no note about it.
    experts = {"density": 0.05, "selection": "magnitude", "values": "rescaled", "exclude": []}
    report = merge_recipe(recipe(inputs, "routed", experts=experts), tmp_path / "out", progress=False)
    assert report.router
    assert report.notes == ("The experts are data-free: the calibration prompts trained the router alone.",)
    assert report.experts[0].divergence is None
    assert report.experts[0].factor is not None
    assert report.experts[0].factor <= 1


def test_a_fine_tune_equal_to_the_base_gets_an_expert_that_undoes_the_merge(inputs: Path, tmp_path: Path) -> None:
    models = [{"model": "one"}, {"name": "same", "model": "base"}]
    experts = {"density": 1.0, "values": "exact", "selection": "magnitude", "exclude": []}
    merge_recipe(
        recipe(inputs, "same", models=models, experts=experts, calibration=None), tmp_path / "out", progress=False
    )
    bundle = open_bundle(tmp_path / "out")
    backbone, base = (load_file(path / "model.safetensors") for path in (bundle.backbone_dir, inputs / "base"))
    for name, delta in bundle.read_expert("same").sparse.items():
        total = backbone[name].float() + delta.dense(backbone[name].shape[1])
        torch.testing.assert_close(total, base[name].float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"model": "absent"}]}, "no model directory at .*absent"),
        ({"merge_method": "f"}, "merge_method: unknown 'f'"),
        ({"calibration": {"file": "gone.jsonl"}}, r"gone\.jsonl"),
        ({"models": [{"model": "one"}]}, "no model is called 'two'"),
    ],
)
def test_faults_are_found_before_anything_is_written(
    inputs: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckError, match=message):
        merge_recipe(recipe(inputs, "bad", **changes), tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_fault_half_way_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    save_fine_tune(inputs / "base", inputs / "nan", 5)
    tensors = load_file(inputs / "nan" / "model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, inputs / "nan" / "model.safetensors")
    models = [{"model": "one"}, {"name": "two", "model": "nan"}]
    with pytest.raises(CheckpointError, match=r"nan.*model\.norm\.weight"):
        merge_recipe(recipe(inputs, "nan", models=models), tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_replaced_only_when_asked(inputs: Path, tmp_path: Path) -> None:
    path = recipe(inputs, "again", calibration=None, experts={})
    merge_recipe(path, tmp_path / "out", progress=False)
    with pytest.raises(CheckError, match="--overwrite"):
        merge_recipe(path, tmp_path / "out", progress=False)
    merge_recipe(path, tmp_path / "out", overwrite=True, progress=False)
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_adapters_are_fine_tunes(inputs: Path, tmp_path: Path) -> None:
    """And one adapter of weight 1 gives itself back."""
    write_adapter(inputs / "lora", factors(Q, 32, 32))
    models = [{"model": "lora"}, {"name": "on_one", "model": "one+lora"}]
    path = recipe(
        inputs, "lora", models=models, merge_method="task_arithmetic", parameters={"weight": 1}, experts={},
        calibration=None, out_dtype="float32",
    )  # fmt: skip
    merge_recipe(path, tmp_path / "both", progress=False)
    bundle = open_bundle(tmp_path / "both")
    assert bundle.expert_names == ("lora", "on_one")
    assert bundle.manifest.inputs["models/on_one"]["adapts"] == str(inputs / "one")
    assert any("its task vector includes the difference between the two" in note for note in bundle.manifest.notes)
    alone = recipe(
        inputs, "alone", models=models[:1], merge_method="task_arithmetic", parameters={"weight": 1}, experts={},
        calibration=None, out_dtype="float32",
    )  # fmt: skip
    merge_recipe(alone, tmp_path / "one", progress=False)
    merged = open_checkpoint(tmp_path / "one" / "backbone")
    adapted = open_adapter(inputs / "lora", open_checkpoint(inputs / "base"))
    for name in merged.tensors:
        torch.testing.assert_close(merged.tensor(name), adapted.tensor(name, torch.float32), rtol=0, atol=1e-6)


def test_frank_wolfe_from_a_recipe(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {
        "variant": "hard", "steps": 2, "step_rule": "classic", "objective": {"replies": "fine_tune", "per_task": 1},
    }  # fmt: skip
    path = recipe(
        inputs, "fw", merge_method="frank_wolfe", parameters=parameters, models=[{"model": "one"}, {"model": "two"}],
        out_dtype="float32", experts={"distill": 0},
    )  # fmt: skip
    merge_recipe(path, tmp_path / "out")
    err = capsys.readouterr().err
    assert "step 0: loss " in err
    assert "coefficients: " in err
    base, one, two, merged = (
        open_checkpoint(p) for p in (*(inputs / n for n in ("base", "one", "two")), tmp_path / "out" / "backbone")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    # Two classic steps: the first goes to a vertex, the second two thirds of the way to one.
    vertices = [item.tensor(name).float() for item in (base, one, two)]
    points = [first + 2 / 3 * (second - first) for first in vertices[1:] for second in vertices]
    assert any(torch.allclose(merged.tensor(name), point, atol=1e-5) for point in points)


LOW_RANK = {"experts": {"budget": 0.2, "distill": 3}, "merge_method": "linear"}


def test_the_same_inputs_give_the_same_bytes_in_one_process_and_in_two_and_ranks_are_reported(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(inputs, "budget", **LOW_RANK)
    reports = {name: merge_recipe(path, tmp_path / name, workers=workers) for name, workers in (("a", 1), ("b", 2))}
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    report = reports["a"].experts[0]
    assert report.ranks is not None
    count, least, most = report.ranks
    assert 1 <= least <= most
    assert report.divergence is not None
    assert report.divergence[1] < report.divergence[0]
    assert f"expert one: rank {least} to {most} in {count} weights" in capsys.readouterr().err
    assert "| one | rank" in (tmp_path / "a" / "README.md").read_text()
    assert 0.15 < report.share <= 0.21


def test_a_report_of_ranks_survives_a_resumed_merge(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(inputs, "resumed", calibration=None, experts={"budget": 0.2}, merge_method="linear")
    whole = merge_recipe(path, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("merge.run.model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge_recipe(path, tmp_path / "out", progress=False)
    again = merge_recipe(path, tmp_path / "out", progress=False, resume=True)
    assert again.experts == whole.experts


def test_a_lora_on_its_base_is_served_as_it_is(inputs: Path, tmp_path: Path) -> None:
    made = factors(Q, 32, 32)
    write_adapter(inputs / "exact", made)
    settings = {"models": [{"model": "exact"}], "calibration": None, "merge_method": "base"}
    merge_recipe(recipe(inputs, "exact_lora", experts={"form": "lora"}, **settings), tmp_path / "out", progress=False)
    bundle = open_bundle(tmp_path / "out")
    part = bundle.read_expert("exact").low_rank[f"{Q}.weight"]
    assert torch.equal(part.a, made[f"{Q}.lora_A.weight"])
    assert torch.equal(part.b, made[f"{Q}.lora_B.weight"])
    backbone, base = open_checkpoint(bundle.backbone_dir), open_checkpoint(inputs / "base")
    assert all(torch.equal(backbone.tensor(name), base.tensor(name)) for name in base.tensors)
    full = recipe(inputs, "not_lora", experts={"form": "lora"}, **{**settings, "models": [{"model": "one"}]})
    with pytest.raises(CheckError, match="is a full checkpoint: experts.form: lora is for plain LoRAs on the base"):
        merge_recipe(full, tmp_path / "no", progress=False)
    other = recipe(inputs, "not_base", experts={"form": "lora"}, **{**settings, "merge_method": "linear"})
    with pytest.raises(CheckError, match="experts.form: lora keeps LoRAs of the base as they are: set merge_method: b"):
        merge_recipe(other, tmp_path / "no", progress=False)


def test_a_lora_that_fits_is_kept_beside_an_expert_that_was_fitted(inputs: Path, tmp_path: Path) -> None:
    made = factors(Q, 32, 32)
    write_adapter(inputs / "zlora", made)
    lines = [json.loads(line) for line in (inputs / "prompts.jsonl").read_text().splitlines()]
    lines = [{**line, "task": {"two": "zlora"}.get(line["task"], line["task"])} for line in lines]
    (inputs / "zlora.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = recipe(
        inputs, "mixed", models=[{"model": "one"}, {"model": "zlora"}], merge_method="base",
        experts={"budget": 0.3, "distill": 2},
        calibration={"file": "zlora.jsonl", "per_task": 6, "answer_tokens": 5},
    )  # fmt: skip
    report = merge_recipe(path, tmp_path / "out", progress=False)
    fitted, kept = report.experts
    assert fitted.divergence is not None
    assert kept.divergence is None
    assert kept.ranks == (1, 4, 4)
    rows = [line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in rows}) == 1
    bundle = open_bundle(tmp_path / "out")
    assert torch.equal(bundle.read_expert("zlora").low_rank[f"{Q}.weight"].a, made[f"{Q}.lora_A.weight"])
    assert bundle.read_expert("one").metadata["form"] == "auto"


def test_a_backbone_that_lost_the_bases_abilities_is_warned_of(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = GeneralAbility(0.5, 1.0, 1.0, 50, 40, None)
    monkeypatch.setattr("merge.guard.general_reference", lambda base: SimpleNamespace(compare=lambda backbone: lost))
    monkeypatch.setattr("merge.guard.shortened", lambda reference: None)
    report = merge_recipe(recipe(inputs, "lost", calibration=None, experts=None), tmp_path / "out")
    concern = "backbone: general questions: KL to the base is 0.500 nats a token, above 0.1"
    assert report.notes[-2:] == (f"backbone: {lost.summary()}", concern)
    assert f"warning: {concern}" in capsys.readouterr().err
    assert concern in (tmp_path / "out" / "README.md").read_text()


def test_a_backbone_that_is_the_base_is_not_compared(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merge.guard.general_reference", lambda base: pytest.fail("asked"))
    path = recipe(inputs, "plain", merge_method="base", models=[{"model": "one"}], calibration=None, experts=None)
    assert not any("general" in note for note in merge_recipe(path, tmp_path / "out").notes)
