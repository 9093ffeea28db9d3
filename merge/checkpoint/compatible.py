"""Does a fine-tune belong to this base? Checked before any work, every mismatch listed at once."""

from collections.abc import Sequence

from merge.checkpoint.error import CheckpointError
from merge.checkpoint.reader import Checkpoint, read_json

SHAPING = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "tie_word_embeddings", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters", "sliding_window",
)  # fmt: skip
"""Fields of config.json that change what the same weights compute."""

LISTED = 4
"""Mismatches spelled out in a message; the rest are counted."""


def check_compatible(base: Checkpoint, fine_tunes: Sequence[Checkpoint]) -> None:
    """Check that every fine-tune has the base's tensors, shapes, computing config and vocabulary.

    Raises:
        CheckpointError: names each fine-tune's mismatches.
    """
    for fine_tune in fine_tunes:
        problems = [*_config(base, fine_tune), *_tensors(base, fine_tune), *_vocabulary(base, fine_tune)]
        if problems:
            shown = "; ".join(problems[:LISTED])
            more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
            raise CheckpointError(f"{fine_tune.path} is no fine-tune of {base.path}: {shown}{more}")


def _config(base: Checkpoint, fine_tune: Checkpoint) -> list[str]:
    return [
        f"config.json: {key} is {fine_tune.config[key]!r}, the base's is {base.config[key]!r}"
        for key in SHAPING
        if key in base.config and key in fine_tune.config and base.config[key] != fine_tune.config[key]
    ]


def _tensors(base: Checkpoint, fine_tune: Checkpoint) -> list[str]:
    problems = [f"{name} is missing" for name in sorted(set(base.tensors) - set(fine_tune.tensors))]
    problems += [f"{name} is not in the base" for name in sorted(set(fine_tune.tensors) - set(base.tensors))]
    for name in sorted(set(base.tensors) & set(fine_tune.tensors)):
        ours, theirs = base.tensors[name].shape, fine_tune.tensors[name].shape
        if ours != theirs:
            problems.append(f"{name} is {list(theirs)}, the base's is {list(ours)}")
    return problems


def _vocabulary(base: Checkpoint, fine_tune: Checkpoint) -> list[str]:
    paths = [checkpoint.path / "tokenizer.json" for checkpoint in (base, fine_tune)]
    if not all(path.is_file() for path in paths):
        return []
    ours, theirs = ((tokenizer.get("model") or {}).get("vocab") for tokenizer in map(read_json, paths))
    if ours == theirs:
        return []
    return ["tokenizer.json: the vocabulary differs from the base's (same ids for the same tokens are needed)"]
