"""Does a fine-tune have the base's tensors?"""

from collections.abc import Sequence

from merge.check.finding import Finding, errors, warnings
from merge.checkpoint import Checkpoint
from merge.recipe import Recipe
from merge.selection import is_selected

HINT = "if it belongs to a head of the task's own, list it under exclude"

RESIZED = (
    "the vocabulary was resized: either resize the base (transformers' resize_token_embeddings) and every other "
    "fine-tune to the same tokens, or list the tensor under exclude, and the added tokens are lost"
)


def compare_tensors(recipe: Recipe, base: Checkpoint, fine_tune: Checkpoint, subject: str) -> list[Finding]:
    """Compare names, shapes and dtypes of the merged tensors, and report every difference.

    Args:
        recipe: says what is merged.
        base: θ₀.
        fine_tune: θ_k.
        subject: what the findings are about.
    """

    def selected(checkpoint: Checkpoint) -> set[str]:
        return {name for name in checkpoint.tensors if is_selected(name, recipe.include, recipe.exclude)}

    ours, theirs = selected(base), selected(fine_tune)
    if not ours & theirs:
        return errors(subject, [_nothing_in_common(base, fine_tune, sorted(ours), sorted(theirs))])
    wrong = [f"{fine_tune.path}: {name} is missing; {HINT}" for name in sorted(ours - theirs)]
    wrong += [f"{fine_tune.path}: {name} is not in the base; {HINT}" for name in sorted(theirs - ours)]
    dtypes: dict[str, list[str]] = {}
    for name in sorted(ours & theirs):
        one, other = base.tensors[name], fine_tune.tensors[name]
        if one.shape != other.shape:
            advice = RESIZED if _has_a_row_a_token(fine_tune, name) and other.shape[1:] == one.shape[1:] else HINT
            wrong.append(f"{fine_tune.path}: {name} is {list(other.shape)}, the base's is {list(one.shape)}; {advice}")
        if one.dtype != other.dtype:
            kind = f"{_short(other.dtype)}, the base's is {_short(one.dtype)}"
            dtypes.setdefault(kind, []).append(name)
    coarse = [
        f"{fine_tune.path}: {names[0]}{f' and {len(names) - 1} more are' if len(names) > 1 else ' is'} {kind}: "
        "its rounding becomes part of the task vector; if possible, merge checkpoints of one dtype"
        for kind, names in dtypes.items()
    ]
    return errors(subject, wrong) + warnings(subject, coarse)


def compare_adapted(base: Checkpoint, model: Checkpoint, subject: str) -> list[Finding]:
    """The task vector of an adapter on another model includes the difference between that model and the base."""
    if model.path == base.path:
        return []
    return warnings(
        subject,
        [f"it was trained on {model.path}, not on the base: its task vector includes the difference between the two"],
    )


def _has_a_row_a_token(checkpoint: Checkpoint, name: str) -> bool:
    shape, tokens = checkpoint.tensors[name].shape, checkpoint.config.get("vocab_size")
    return len(shape) == 2 and shape[0] == tokens


def _nothing_in_common(base: Checkpoint, fine_tune: Checkpoint, ours: Sequence[str], theirs: Sequence[str]) -> str:
    text = f"{fine_tune.path} shares no tensors with the base, which has {len(ours)}"
    for longer, shorter, whose in ((theirs, ours, fine_tune), (ours, theirs, base)):
        first = longer[0].partition(".")[0] + "." if longer else ""
        prefix = first if all(name.startswith(first) for name in longer) else ""
        if prefix and {name.removeprefix(prefix) for name in longer} & set(shorter):
            return f"{text}: the names of {whose.path} start with {prefix!r}; save both from the same model class"
    return (
        f"{text}: it starts with {theirs[0] if theirs else 'nothing'}, the base with {ours[0] if ours else 'nothing'}"
    )


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
