import torch
from safetensors.torch import load_file

from benchmarks.decode.cases import decode_cases
from benchmarks.decode.model import Shape, random_expert, write_loras, write_model
from merge.bundle import open_bundle

TINY = Shape(hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, vocabulary=61, positions=640)


def test_the_model_is_a_bundle_with_experts_on_every_linear(tmp_path):
    bundle = write_model(tmp_path / "bundle", TINY, experts=2, density=0.1)
    assert open_bundle(tmp_path / "bundle", verify=True).expert_names == ("e0", "e1")
    expert = bundle.read_expert("e1")
    assert len(expert.sparse) == 7 * TINY.layers
    for name, delta in expert.sparse.items():
        columns = 48 if "down_proj" in name else 32
        assert delta.index.shape[1] == round(0.1 * columns), name


def test_low_rank_experts_on_every_linear_and_no_experts_beside_loras(tmp_path):
    bundle = write_model(tmp_path / "low", TINY, experts=1, density=0.1, kind="low_rank8_int8")
    low_rank = bundle.read_expert("e0").low_rank
    assert len(low_rank) == 7 * TINY.layers
    assert all(delta.quantised and delta.rank == 8 for delta in low_rank.values())
    assert write_model(tmp_path / "loras", TINY, experts=1, density=0.1, kind="lora16").expert_names == ()


def test_a_random_expert_has_ascending_distinct_columns():
    expert = random_expert("e", "digest", {"w.weight": (200, 129), "w.bias": (200,)}, 0.05, seed=3)
    index = expert.sparse["w.weight"].index.to(torch.int64)
    assert index.shape == (200, 6)
    assert int(index.min()) >= 0
    assert int(index.max()) < 129
    assert bool((index.diff(dim=1) > 0).all())
    assert set(expert.sparse) == {"w.weight"}


def test_the_loras_fit_the_model(tmp_path):
    bundle = write_model(tmp_path / "bundle", TINY, experts=1, density=0.1)
    write_loras(tmp_path / "loras", bundle, ["e0", "e1"], rank=4)
    tensors = load_file(tmp_path / "loras" / "e1" / "adapter_model.safetensors")
    weights = load_file(bundle.backbone_dir / "model.safetensors")
    assert len(tensors) == 2 * 7 * TINY.layers
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            assert (b.shape[0], a.shape[1]) == tuple(weights[f"{module}.weight"].shape)


def test_prompts_differ_between_requests_and_rounds_and_repeat_with_the_seed():
    case = decode_cases(32)[-1]
    prompts = case.prompts(1000, seed=1)
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert prompts == case.prompts(1000, seed=1)
    assert prompts != case.prompts(1000, seed=2)
