"""What the tensors of an adapter do to which tensor of the model beneath."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from merge.bundle.adapter_config import AdapterConfig
from merge.bundle.adapter_names import ADAPTER_WEIGHTS, AdapterTensorName
from merge.checkpoint import TIED, Checkpoint, Faults, TensorInfo, read_headers

Shape = tuple[int, ...]

UNTIE = (
    "train it without that module, or untie the base first (tie_word_embeddings: false, and a copy of the embedding "
    "saved as lm_head.weight), and every full fine-tune of the recipe with it"
)


@dataclass(frozen=True)
class LowRank:
    """A change of one tensor.

    Attributes:
        a, b: names of the factors in the adapter's file.
        magnitude: name of DoRA's norms.
        scale: what the product is multiplied by.
        transposed: the tensor is stored transposed, [in, out], as embeddings and GPT-2's layers are.
    """

    a: str
    b: str
    magnitude: str | None
    scale: float
    transposed: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, matched with a model's.

    Attributes:
        tensors: what its headers say.
        changes: by the name of the tensor that changes.
        replacements: tensors that are replaced as a whole (`modules_to_save`, `bias`), with the name in the adapter.
    """

    tensors: Mapping[str, TensorInfo]
    changes: Mapping[str, LowRank]
    replacements: Mapping[str, str]


def match_adapter(directory: Path, config: AdapterConfig, model: Checkpoint) -> Adapter:
    """Find the tensor of a model that each tensor of an adapter changes.

    Raises:
        CheckpointError: pickled or damaged weights, factors without their partner, a tensor that the model does not
            have, shapes that do not fit; every one of them is named.
    """
    tensors = read_headers(directory, ADAPTER_WEIGHTS)
    faults = Faults()
    groups: dict[str, dict[str, str]] = {}
    replacements: dict[str, str] = {}
    for name in sorted(tensors):
        parsed = AdapterTensorName.parse(name)
        inner = parsed.inner
        if parsed.factor:
            factors = groups.setdefault(parsed.module, {})
            if parsed.factor in factors:
                faults.found.append(f"{directory}: {name} and {factors[parsed.factor]} are the same factor: keep one")
            factors[parsed.factor] = name
        elif parsed.other:
            faults.found.append(
                f"{directory}: {name} is not a factor of a plain LoRA; merge the adapter with peft first"
            )
        elif _is_redundant(directory, tensors, name, inner, model):
            continue
        elif inner not in model.tensors:
            faults.found.append(f"{directory}: {name} replaces {inner}, which {_lacking(model, inner)}")
        elif tensors[name].shape != model.tensors[inner].shape:
            faults.found.append(
                f"{directory}: {name} is {list(tensors[name].shape)}; "
                f"{model.path} has {inner} {list(model.tensors[inner].shape)}"
            )
        else:
            replacements[inner] = name
    changes = {}
    for module, names in groups.items():
        with faults.gathered():
            changes[f"{module}.weight"] = _low_rank(directory, module, names, tensors, config, model)
    faults.found.extend(_ambiguous(directory, changes, config, model))
    for name in sorted((set(changes) | set(replacements)) & _shared(model)):
        faults.found.append(
            f"{directory}: it changes {name}, which {model.path} also uses as output head (tied embeddings), and so it "
            f"changes the head, too: {UNTIE}"
        )
    faults.settle()
    return Adapter(tensors, changes, replacements)


def _ambiguous(directory: Path, changes: Mapping[str, LowRank], config: AdapterConfig, model: Checkpoint) -> list[str]:
    """Errors for square weights whose orientation is unknown: the other weights contradict `fan_in_fan_out`."""
    shapes = {name: model.tensors[name].shape for name in changes if "embedding" not in changes[name].a}
    transposed = {
        changes[name].transposed for name, shape in shapes.items() if len(shape) == 2 and shape[0] != shape[1]
    }
    if transposed <= {config.fan_in_fan_out}:
        return []
    return [
        f"{directory}: {name} is square, and fan_in_fan_out is wrong for other modules: whether it is stored "
        "transposed is ambiguous; merge the adapter with peft first"
        for name, shape in shapes.items()
        if len(shape) == 2 and shape[0] == shape[1]
    ]


def _original(model: Checkpoint, name: str) -> str | None:
    """The embedding that a model uses in the place of a tensor that it does not store."""
    if name in model.tensors or model.config.get("tie_word_embeddings") is False:
        return None
    return next((original for original in TIED.get(name, ()) if original in model.tensors), None)


def _lacking(model: Checkpoint, name: str) -> str:
    original = _original(model, name)
    if original is None:
        return f"{model.path} does not have"
    return f"{model.path} ties to {original}: {UNTIE}"


def _is_redundant(directory: Path, tensors: Mapping[str, TensorInfo], name: str, inner: str, model: Checkpoint) -> bool:
    """Whether a tensor is a copy of the model's embedding or tied head, as `save_embedding_layers` stores them."""
    original = inner if inner in _shared(model) else _original(model, inner)
    if original is None or original not in model.tensors or tensors[name].shape != model.tensors[original].shape:
        return False
    stored = Checkpoint(directory, {}, tensors).tensor(name)
    own = model.tensor(original)
    return torch.equal(stored, own.to(stored.dtype)) or torch.equal(stored.to(own.dtype), own)


def _shared(model: Checkpoint) -> set[str]:
    """Embeddings that are the output head as well."""
    original = _original(model, "lm_head.weight")
    return set() if original is None else {original}


def _low_rank(
    directory: Path, module: str, names: Mapping[str, str], tensors: Mapping[str, TensorInfo], config: AdapterConfig,
    model: Checkpoint,
) -> LowRank:  # fmt: skip
    faults = Faults()
    embedding = "embedding_a" in names or "embedding_b" in names
    a, b = names.get("embedding_a" if embedding else "a"), names.get("embedding_b" if embedding else "b")
    target = model.tensors.get(f"{module}.weight")
    if target is None:
        faults.found.append(f"{directory}: it adapts {module}, of which {model.path} has no weight")
    if a is None or b is None:
        faults.found.append(f"{directory}: {module} has one factor only; A and B are needed")
    magnitude = names.get("magnitude")
    if config.dora != (magnitude is not None):
        faults.found.append(
            f"{directory}: use_dora is {str(config.dora).lower()}, but {module} has "
            f"{'a' if magnitude else 'no'} magnitude vector"
        )
    if magnitude is not None and target is not None and (embedding or len(target.shape) != 2):
        faults.found.append(f"{directory}: DoRA of {module} is not supported, only of linear layers")
    faults.settle()
    assert a is not None
    assert b is not None
    assert target is not None
    left, right = tensors[a].shape, tensors[b].shape
    if left[:1] != (config.rank(module),):
        faults.found.append(
            f"{directory}: {a} is {list(left)}; adapter_config.json gives {module} the rank {config.rank(module)}"
        )
    transposed = embedding or _is_transposed(left, right, target.shape, config.fan_in_fan_out)
    if not _fits(left, right, target.shape, transposed):
        faults.found.append(
            f"{directory}: {module} has factors {list(left)} and {list(right)}, which do not give {list(target.shape)}"
        )
    faults.settle()
    return LowRank(a, b, magnitude, config.scale(module), transposed)


def _is_transposed(a: Shape, b: Shape, target: Shape, flag: bool) -> bool:
    """Whether a weight is stored [in, out]: the shapes tell, and of square ones fan_in_fan_out.

    PEFT flips the flag module by module while it builds a model, so in files it is right for some of the modules only.
    """
    if len(target) != 2 or target[0] == target[1]:
        return flag and len(target) == 2
    return len(a) == len(b) == 2 and target == (a[1], b[0])


def _fits(a: Shape, b: Shape, target: Shape, transposed: bool) -> bool:
    if len(a) != len(target) or len(b) != len(target) or b[1:2] != a[:1]:
        return False
    if len(target) == 2:
        return target == ((a[1], b[0]) if transposed else (b[0], a[1]))
    return len(target) > 2 and target == (b[0], *a[1:]) and all(size == 1 for size in b[2:])
