"""From scores to probabilities, and the probability below which no expert is chosen."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PULL = 1e-6

UNROUTED = 0.05
"""Most held-out prompts of the experts, of those whose expert was found, that a chosen threshold turns away by default.

Far fewer of the prompts that are asked later: the router that is kept knows the wordings that were held out here. On
two wordings new to it, beside six that it knew, it turned away 0 to 0.3 %, and let 2 to 8 % of sayings through.
"""


@dataclass(frozen=True)
class Calibration:
    """Best offset and temperature, with the held-out loss they reach (nats a prompt, classes weighing the same)."""

    offset: float
    temperature: float
    loss: float


def probabilities(scores: Tensor, offset: float, temperature: float) -> Tensor:
    """Semantics: p = softmax([(scores - offset) / temperature, 0]); the last column is "none".

    Args:
        scores: [n, E] float64.
        offset: score at which an expert is as likely as none.
        temperature: width of the transition.

    Returns:
        [n, E + 1] float64.
    """
    logits = (scores - offset) / temperature
    return torch.softmax(torch.cat([logits, logits.new_zeros(len(logits), 1)], dim=1), dim=1)


def calibrate(scores: Tensor, labels: Tensor) -> Calibration:
    """Fit offset and temperature to held-out scores by maximum likelihood, every class weighing the same.

    In 1/temperature and offset/temperature the loss is convex. A slight pull of 1/temperature towards 0 keeps it finite
    if the scores separate the classes completely.

    Args:
        scores: [n, E] float64, each from a fit that had not seen the prompt's wording.
        labels: [n] int64, the expert's number, or E for a prompt of no expert.
    """
    weight = class_weights(labels)
    slope_and_shift = torch.tensor([5.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope_and_shift], max_iter=100, line_search_fn="strong_wolfe")

    def loss_of() -> Tensor:
        slope, shift = slope_and_shift.unbind()
        logits = torch.cat([slope * scores - shift, scores.new_zeros(len(scores), 1)], dim=1)
        likelihood = torch.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
        return PULL * slope * slope - (weight * likelihood).sum()

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    slope, shift = slope_and_shift.detach().tolist()
    slope = max(slope, 1e-3)
    return Calibration(offset=shift / slope, temperature=1.0 / slope, loss=float(loss_of().detach()))


def class_weights(labels: Tensor) -> Tensor:
    """[n] float64 weights that sum to 1 and give each class the same share."""
    counts = torch.bincount(labels).to(torch.float64)
    return 1.0 / (counts[labels] * torch.count_nonzero(counts))


def choose_threshold(
    scores: Tensor, labels: Tensor, calibration: Calibration, most_unrouted: float = UNROUTED
) -> float:
    """Threshold between held-out prompts that were routed right and prompts that belong to no expert.

    The threshold maximises (share of experts' prompts routed right) - (share of the others routed at all). It lies in
    the middle of the best range, but at most `most_unrouted` of the experts' prompts fall under it. The prompts of no
    expert include made-up ones that differ from an expert's by one keyword, more than users ask. Where both kinds
    overlap, these would push the threshold into the experts' own prompts, and an expert that answers a foreign prompt
    does less harm than one that does not answer its own.
    """
    experts = scores.shape[1]
    chance = probabilities(scores, calibration.offset, calibration.temperature)[:, :experts]
    confidence, choice = chance.max(dim=1)
    right = confidence[(labels < experts) & (choice == labels)]
    stray = confidence[labels == experts]
    if len(right) == 0 or len(stray) == 0:
        return 0.5
    candidates = torch.linspace(0.05, 0.95, 91, dtype=torch.float64)
    gain = torch.tensor(
        [float((right >= t).double().mean()) - float((stray >= t).double().mean()) for t in candidates.tolist()]
    )
    between = float(candidates[gain >= gain.max() - 1e-9].median())
    return round(min(between, float(right.quantile(most_unrouted))), 4)


def foreign_threshold(scores: Tensor, calibration: Calibration, most: float) -> float:
    """The lowest threshold that at most a share `most` of prompts of no expert reach.

    Args:
        scores: [n, E] float64, held-out scores of those prompts, n ≥ 1.
        calibration: of the scores.
        most: the share, 0 to 1.
    """
    confidence = probabilities(scores, calibration.offset, calibration.temperature)[:, :-1].max(dim=1).values
    ordered = confidence.sort(descending=True).values
    allowed = int(most * len(ordered))
    if allowed >= len(ordered):
        return 0.0
    return min(1.0, math.ceil(float(ordered[allowed]) * 10_000 + 1e-6) / 10_000)  # just above the first to be kept out
