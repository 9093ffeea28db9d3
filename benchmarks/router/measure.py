"""One row: a classifier trained on one data set and asked its test prompts."""

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.router.chats import score_chats
from benchmarks.router.classifiers import Classifier, classifiers
from benchmarks.router.data import Dataset, of_tokens
from merge.bundle import RouterModel
from merge.router.quality import area_under_curve, calibration_error
from serve.decision import CLOSE
from serve.router import Router

LOST = 0.05
AT_ONCE = 32
TIMED = 500


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        data, prompts_per_task, features: which data, the most prompts of an expert, and which classifier.
        experts: how many.
        accuracy: share of the test prompts whose most probable expert is theirs, whatever the threshold.
        routed: share of the test prompts for which its probability also reaches the classifier's threshold.
        coverage: share of the test prompts that reach it.
        foreign_routed: share of the foreign prompts that reach it; None without any.
        auroc: how well the best probability tells test prompts from foreign ones; None without any.
        ood_recall: share of foreign prompts below the probability that 5 % of the test prompts are below; likewise.
        chat_followed, chat_alone, chat_moved, chat_missed: of the data `chats` alone, see `ChatScores`; then `accuracy`
            and the others are of the single prompts that the chats are made from.
        ece: expected calibration error of the best probability on the test prompts.
        mixed: share of the test prompts that two experts answer with `top_k: 2`: the threshold is reached, and the
            second expert is at least half as probable as the best.
        mixed_best, mixed_second: of those, the shares whose expert is the best one, and the second; None without any.
        train_seconds, train_cpu_seconds: of training, on the clock and of the processor.
        train_peak_mb: the process's peak resident memory, libraries included, after training.
        timed_tokens: tokens of the prompts whose decisions are timed; None: they are unchanged test prompts.
        p50_ms, p99_ms: of one decision, one after another.
        p50_ms_32, p99_ms_32: of one decision when 32 threads ask.
    """

    data: str
    prompts_per_task: int
    features: str
    experts: int
    accuracy: float
    routed: float
    coverage: float
    foreign_routed: float | None
    auroc: float | None
    ood_recall: float | None
    ece: float
    mixed: float
    mixed_best: float | None
    mixed_second: float | None
    train_seconds: float
    train_cpu_seconds: float
    train_peak_mb: float
    timed_tokens: int | None
    p50_ms: float
    p99_ms: float
    p50_ms_32: float
    p99_ms_32: float
    chat_followed: float | None = None
    chat_alone: float | None = None
    chat_moved: float | None = None
    chat_missed: float | None = None


def measure(data: Dataset, features: str, backbone: Path | None = None, tokens: int | None = None) -> Row:
    """Train and ask.

    Args:
        data: the prompts.
        features: a key of `classifiers`.
        backbone: the model whose hidden states `backbone` reads.
        tokens: of the prompts whose decisions are timed; None: they are unchanged test prompts.
    """
    train = classifiers(backbone)[features]
    clock, processor = time.perf_counter(), time.process_time()
    model = train(data.train)
    seconds, cpu = time.perf_counter() - clock, time.process_time() - processor
    peak = peak_mb()
    chances = model.probabilities_of([text for text, _ in data.test])
    best = chances.max(axis=1)
    labels = np.array([label for _, label in data.test])
    right = np.array(model.names)[chances.argmax(axis=1)] == labels
    soft = soft_scores(model, chances, labels)
    strangers = model.probabilities_of(data.foreign).max(axis=1) if data.foreign else np.zeros(0)
    texts = [text for text, _ in data.test][:TIMED]
    if tokens is not None:
        texts = of_tokens(texts, tokens)
    # As the server decides: prompts that are asked at once are read together.
    decide = Router(model).decide if isinstance(model, RouterModel) else lambda text: model.probabilities_of([text])
    alone = [_timed(decide, text) for text in texts]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        together = list(pool.map(lambda text: _timed(decide, text), texts))
    chats = score_chats(model, data.chats) if data.chats else None
    found = {} if chats is None else {f"chat_{name}": value for name, value in asdict(chats).items()}
    return Row(
        data=data.name,
        prompts_per_task=max(len(prompts) for prompts in data.train.values()),
        features=features,
        experts=len(model.names),
        accuracy=float(right.mean()),
        routed=float((right & (best >= model.threshold)).mean()),
        coverage=float((best >= model.threshold).mean()),
        foreign_routed=float((strangers >= model.threshold).mean()) if len(strangers) else None,
        auroc=area_under_curve(best.tolist(), strangers.tolist()) if len(strangers) else None,
        ood_recall=out_of_domain_recall(best, strangers) if len(strangers) else None,
        ece=calibration_error(best.tolist(), right.tolist()),
        mixed=soft[0],
        mixed_best=soft[1],
        mixed_second=soft[2],
        train_seconds=seconds,
        train_cpu_seconds=cpu,
        train_peak_mb=peak,
        timed_tokens=tokens,
        p50_ms=1000 * float(np.quantile(alone, 0.5)),
        p99_ms=1000 * float(np.quantile(alone, 0.99)),
        p50_ms_32=1000 * float(np.quantile(together, 0.5)),
        p99_ms_32=1000 * float(np.quantile(together, 0.99)),
        **found,
    )


def soft_scores(
    model: Classifier, chances: NDArray[np.float64], labels: NDArray[np.str_]
) -> tuple[float, float | None, float | None]:
    """`mixed`, `mixed_best` and `mixed_second` of `Row`."""
    if len(model.names) < 2:
        return 0.0, None, None
    rows = np.arange(len(chances))
    second, best = np.argsort(chances, axis=1)[:, -2:].T
    close = (chances[rows, best] >= model.threshold) & (chances[rows, second] >= CLOSE * chances[rows, best])
    if not close.any():
        return 0.0, None, None
    names = np.array(model.names)
    return (
        float(close.mean()),
        float((names[best] == labels)[close].mean()),
        float((names[second] == labels)[close].mean()),
    )


def out_of_domain_recall(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Share of `outside` below the value that `LOST` of `inside` are below."""
    return float((outside < np.quantile(inside, LOST)).mean())


def peak_mb() -> float:
    """The process's peak resident memory so far, in 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _timed(decide: Callable[[str], object], text: str) -> float:
    start = time.perf_counter()
    decide(text)
    return time.perf_counter() - start
