"""`lambda: auto`: how much of the merged task vectors the backbone takes.

A method with λ gives θ₀ + λ τ. τ is computed once, with the method's usual λ, and a few multiples of it are tried from
the smallest on. A scale is accepted if the model still has the base's general abilities, as `GeneralReference` measures
them. Of the accepted scales, the chosen one gives the fine-tunes' replies to the calibration prompts the highest
probability; without prompts it is the largest. KL to the base grows with the scale, so the search ends at the first
scale that exceeds the limits.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from merge.backbone import write_backbone
from merge.check import Inputs
from merge.check.general import MOST_DIVERGENCE, MOST_PERPLEXITY, GeneralReference
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts.calibration import continue_greedily, make_batches
from merge.experts.running import assign, build_model, device_of, end_tokens, load_tokenizer
from merge.frank_wolfe import LanguageModelLoss
from merge.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Multiples of the method's usual λ that are tried."""

PROMPTS = 64
"""Most calibration prompts that are used, of all tasks together: the first ones of each."""

REPLY_TOKENS = 32
"""Most tokens of a fine-tune's reply to them."""

_BATCH = 8


@dataclass(frozen=True)
class ScalePoint:
    """One λ that was tried.

    Attributes:
        scale: λ.
        divergence: KL(base ‖ model) on general questions, in nats a token.
        perplexity_ratio: perplexity on plain text, over the base's.
        loss: mean over the tasks of the cross-entropy of their fine-tunes' replies, in nats a token; None without
            prompts, or if the limits are exceeded.
    """

    scale: float
    divergence: float
    perplexity_ratio: float
    loss: float | None

    @property
    def kept(self) -> bool:
        """Whether the base's general abilities are."""
        return self.divergence <= MOST_DIVERGENCE and self.perplexity_ratio <= MOST_PERPLEXITY

    def __str__(self) -> str:
        text = f"λ {self.scale:.3g}: KL {self.divergence:.3f}, perplexity {self.perplexity_ratio:.3f}"
        return text if self.loss is None else f"{text}, loss {self.loss:.3f}"


@dataclass(frozen=True)
class ScaleChoice:
    """The λ that was chosen.

    Attributes:
        multiple: of the usual one.
        scale: λ itself.
        curve: what was tried, from the smallest λ on.
    """

    multiple: float
    scale: float
    curve: tuple[ScalePoint, ...]

    def summary(self) -> str:
        """The choice and the curve in a line."""
        kept = any(point.kept for point in self.curve)
        why = "" if kept else ", the smallest that was tried, although it changes the base's general abilities"
        tried = "; ".join(map(str, self.curve))
        return f"lambda: auto chose {self.scale:.3g}{why} ({tried}; KL to the base and perplexity on general text)"


def choose_scale(
    inputs: Inputs, reference: GeneralReference, shown: Progress, threads: int | None = None, folder: Path | None = None
) -> ScaleChoice:
    """Choose λ for a recipe that `chooses_scale`.

    Cost: the merge once more, a greedy reply of its fine-tune to each of up to `PROMPTS` prompts, and for each of up to
    seven scales one pass over the base's replies to general questions, over plain texts, and over those replies.
    Memory: one model in float32, and two tensors of it. Disk: one model in float32, until the function returns.

    Args:
        inputs: the recipe's.
        reference: the base's general abilities.
        shown: gets the progress.
        threads: tensors merged at a time; None: as many as there are processors.
        folder: the folder of the merged model in the meantime; None: the system's directory.

    Raises:
        CheckpointError: a model cannot be run.
    """
    recipe, base = inputs.recipe, inputs.base
    merged = inputs.merged()
    usual = recipe.usual_scale
    with tempfile.TemporaryDirectory(prefix=".scale-", dir=folder) as scratch:
        with shown.stage("lambda: merging once with the usual λ", len(base.tensors) + len(base.buffers)) as advance:
            write_backbone(
                Path(scratch),
                base,
                inputs.fine_tunes,
                recipe.method(),
                dtype=getattr(torch, recipe.dtype),
                out_dtype=torch.float32,
                on_tensor=advance,
                merged=merged.tensors,
                by_rows=recipe.by_rows,
                threads=threads,
            )
        moved = open_checkpoint(Path(scratch)).on(base.device)
        model = build_model(base.path, device=base.device)
        loss = _own_replies(inputs, model, shown)
        assign(model, base)
        curve: list[ScalePoint] = []
        with shown.stage("lambda: trying scales", len(MULTIPLES)) as advance:
            for multiple in MULTIPLES:
                _scaled(model, inputs, moved, multiple)
                curve.append(_tried(usual * multiple, model, reference, loss))
                shown.say(str(curve[-1]))
                advance()
                if not curve[-1].kept:
                    break
    return best_of(curve)


def best_of(curve: Sequence[ScalePoint]) -> ScaleChoice:
    """The choice among scales that were tried: the first ones of `MULTIPLES`, in their order."""
    kept = [number for number, point in enumerate(curve) if point.kept] or [0]
    losses = {number: point.loss for number in kept if (point := curve[number]).loss is not None}
    best = min(losses, key=lambda number: losses[number]) if losses else kept[-1]
    return ScaleChoice(MULTIPLES[best], curve[best].scale, tuple(curve))


def _tried(
    scale: float, model: "PreTrainedModel", reference: GeneralReference, loss: Callable[[], float] | None
) -> ScalePoint:
    point = ScalePoint(scale, reference.divergence(model), reference.perplexity_ratio(model), None)
    if loss is None or not point.kept:
        return point
    return ScalePoint(scale, point.divergence, point.perplexity_ratio, loss())


@torch.no_grad()
def _scaled(model: "PreTrainedModel", inputs: Inputs, moved: Checkpoint, multiple: float) -> None:
    """Let a model that holds the base's other tensors hold θ₀ + multiple · (moved − θ₀), rounded as it is stored."""
    base, recipe = inputs.base, inputs.recipe
    parameters = dict(model.named_parameters())
    for name, info in inputs.merged().tensors.items():
        origin, tensor = base.tensor(name, torch.float32), moved.tensor(name, torch.float32)
        if recipe.scales(name):
            tensor = torch.lerp(origin, tensor, multiple)
        stored = info.dtype if recipe.out_dtype is None else getattr(torch, recipe.out_dtype)
        parameters[name].copy_(tensor.to(stored))


def _own_replies(inputs: Inputs, model: "PreTrainedModel", shown: Progress) -> Callable[[], float] | None:
    """What measures the loss of a model's weights on the fine-tunes' own replies; None without prompts."""
    settings = inputs.recipe.calibration
    if settings is None:
        return None
    tokens, _ = inputs.calibration_tokens()
    tasks = sorted(tokens)[:: max(1, -(-len(tokens) // PROMPTS))]
    each = max(1, PROMPTS // len(tasks))
    ends = end_tokens(model, load_tokenizer(inputs.base.path))
    batches = {}
    with shown.stage("lambda: replies of the fine-tunes", len(tasks)) as advance:
        for task in tasks:
            assign(model, inputs.fine_tunes[task])
            prompts = tokens[task][:each]
            limit = min(settings.answer_tokens, REPLY_TOKENS)
            batches[task] = make_batches(
                prompts, continue_greedily(model, prompts, limit, ends), _BATCH, device_of(model)
            )
            advance()
    loss = LanguageModelLoss(model, batches)
    return lambda: loss.loss({})
