"""From answers to figures, under the names and definitions that serving benchmarks share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serve.bench.client import Answer


@dataclass(frozen=True)
class Spread:
    """A distribution of milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Spread | None":
        """None if there is nothing."""
        if not milliseconds:
            return None
        values = np.asarray(milliseconds)
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        return cls(*(round(float(value), 3) for value in (values.mean(), p50, p90, p99)))


@dataclass(frozen=True)
class Slo:
    """What a user puts up with; None: anything.

    Attributes:
        ttft_ms: to the first token.
        tpot_ms: for each further token.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def met(self, answer: Answer) -> bool:
        """Whether an answer was quick enough."""
        within_first = self.ttft_ms is None or ttft(answer) <= self.ttft_ms
        return within_first and (self.tpot_ms is None or tpot(answer) <= self.tpot_ms)


@dataclass(frozen=True)
class Summary:
    """Figures of one run.

    Attributes:
        requests, failed: numbers of requests.
        errors: what went wrong, counted.
        seconds: from the first request to the last answer.
        experts: requests for each expert; "" is the backbone alone.
        tokens: generated.
        requests_per_s, tokens_per_s: answered requests and their tokens over the seconds.
        goodput_per_s: answered requests within the SLO over the seconds.
        ttft_ms: to the first piece of text.
        tpot_ms: a request's time after it, over the tokens after the first.
        itl_ms: between two pieces of text.
        e2e_ms: to the end.
        series: figures of each second: tokens' pieces that came, requests in flight at its end, and median ITL.
    """

    requests: int
    failed: int
    errors: dict[str, int]
    seconds: float
    experts: dict[str, int]
    tokens: int
    requests_per_s: float
    tokens_per_s: float
    goodput_per_s: float
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None
    series: list[dict[str, float | None]]

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)


def ttft(answer: Answer) -> float:
    """Milliseconds to the first piece."""
    return (answer.pieces[0] - answer.sent) * 1e3


def tpot(answer: Answer) -> float:
    """Milliseconds for each token after the first; 0 if there is none."""
    return (answer.pieces[-1] - answer.pieces[0]) * 1e3 / max(1, answer.tokens - 1)


def summarise(answers: Sequence[Answer], slo: Slo | None = None) -> Summary:
    """Figures of one run's answers, of which there is at least one."""
    slo = slo or Slo()
    good = [answer for answer in answers if answer.error is None]
    start, end = min(a.sent for a in answers), max(a.ended for a in answers)
    seconds = max(end - start, 1e-9)
    tokens = sum(answer.tokens for answer in good)
    gaps = [(late - early) * 1e3 for a in good for early, late in zip(a.pieces, a.pieces[1:], strict=False)]
    return Summary(
        requests=len(answers),
        failed=len(answers) - len(good),
        errors=dict(Counter(answer.error for answer in answers if answer.error is not None)),
        seconds=round(seconds, 3),
        experts=dict(sorted(Counter(answer.expert or "" for answer in answers).items())),
        tokens=tokens,
        requests_per_s=round(len(good) / seconds, 3),
        tokens_per_s=round(tokens / seconds, 2),
        goodput_per_s=round(sum(map(slo.met, good)) / seconds, 3),
        ttft_ms=Spread.of([ttft(answer) for answer in good]),
        tpot_ms=Spread.of([tpot(answer) for answer in good if answer.tokens > 1]),
        itl_ms=Spread.of(gaps),
        e2e_ms=Spread.of([(answer.ended - answer.sent) * 1e3 for answer in good]),
        series=_series(answers, start, end),
    )


def _series(answers: Sequence[Answer], start: float, end: float) -> list[dict[str, float | None]]:
    rows: list[dict[str, float | None]] = []
    for second in range(int(end - start) + 1):
        first, last = start + second, start + second + 1
        gaps = [
            (late - early) * 1e3
            for a in answers
            for early, late in zip(a.pieces, a.pieces[1:], strict=False)
            if first <= late < last
        ]
        rows.append(
            {
                "second": second,
                "pieces": sum(first <= piece < last for a in answers for piece in a.pieces),
                "in_flight": sum(a.sent < last <= a.ended for a in answers),
                "itl_p50_ms": round(float(np.median(gaps)), 3) if gaps else None,
            }
        )
    return rows
