"""`python -m benchmarks.router.soft --url URL`: what mixing two experts does to a server's answers.

The server runs a bundle of the real zoo. Of the zoo's unseen test requests those are asked on which the second expert
is close to the best, once with `router_top_k` 1 and once with 2.
"""

import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.zoo.command import Parser, positive
from merge.evaluate.metrics import METRICS
from serve.demo.zoo.real.tasks import TASKS
from serve.demo.zoo.task import Example

ROUTED_AT_ONCE = 8
ASKED_AT_ONCE = 8
TIMEOUT_SECONDS = 600

Post = Callable[[str, Mapping[str, Any]], Any]
"""(path, body) → the reply's JSON."""


@dataclass(frozen=True)
class Request:
    """One request of the zoo.

    Attributes:
        task: its task.
        prompt, answer: what is asked, and the right reply.
        metric, longest: how replies are compared with the answer, and tokens that a reply needs at most.
    """

    task: str
    prompt: str
    answer: str
    metric: str
    longest: int


@dataclass(frozen=True)
class Mixed:
    """A request that two experts are close on.

    Attributes:
        task, prompt, answer: the request's.
        experts: the gates of both.
        one, both: the best expert's reply, and that of both mixed.
        one_right, both_right: how right they are, 0 to 1.
    """

    task: str
    prompt: str
    answer: str
    experts: Mapping[str, float]
    one: str
    both: str
    one_right: float
    both_right: float


def requests(count: int, bare: bool, seed: int = 0) -> list[Request]:
    """Unseen requests of all tasks.

    Args:
        count: of each task, at most.
        bare: the contents alone, without the wording that asks for the task: harder to route.
        seed: of the choice.
    """
    found = []
    for task in TASKS:
        examples = task.examples("test", count, seed, "held_out")
        if bare:
            examples = [Example(content.text, content.answer) for content in list(task.contents("test"))[:count]]
        found += [Request(task.name, item.prompt, item.answer, task.metric, task.longest) for item in examples]
    return found


def compare(post: Post, asked: Sequence[Request]) -> list[Mixed]:
    """Ask the requests on which two experts are close, with the best and with both."""
    close = list(_close(post, asked))

    def answered(one: tuple[Request, Mapping[str, float]]) -> Mixed:
        request, gates = one
        best, both = (_reply(post, request, top_k) for top_k in (1, 2))
        right = METRICS[request.metric]
        return Mixed(
            request.task,
            request.prompt,
            request.answer,
            gates,
            best,
            both,
            float(right(best, request.answer)),
            float(right(both, request.answer)),
        )

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(answered, close))


def summary(requests: Sequence[Request], mixed: Sequence[Mixed]) -> dict[str, Any]:
    """The figures, as `--json` prints them."""
    pairs = Counter(" + ".join(sorted(item.experts)) for item in mixed)
    return {
        "requests": len(requests),
        "mixed": len(mixed),
        "pairs": dict(pairs.most_common()),
        "own_expert_is_best": sum(max(item.experts, key=item.experts.__getitem__) == item.task for item in mixed),
        "own_expert_is_second": sum(min(item.experts, key=item.experts.__getitem__) == item.task for item in mixed),
        "one_expert": sum(item.one_right for item in mixed) / len(mixed) if mixed else None,
        "two_experts": sum(item.both_right for item in mixed) / len(mixed) if mixed else None,
        "better": sum(item.both_right > item.one_right for item in mixed),
        "worse": sum(item.both_right < item.one_right for item in mixed),
        "same_reply": sum(item.both == item.one for item in mixed),
        "replies": [asdict(item) for item in mixed],
    }


def _close(post: Post, asked: Sequence[Request]) -> Iterator[tuple[Request, Mapping[str, float]]]:
    for start in range(0, len(asked), ROUTED_AT_ONCE):
        part = asked[start : start + ROUTED_AT_ONCE]
        decided = post("/v1/route", {"prompt": [item.prompt for item in part], "router_top_k": 2})["data"]
        for request, decision in zip(part, decided, strict=True):
            if "experts" in decision:
                yield request, decision["experts"]


def _reply(post: Post, request: Request, top_k: int) -> str:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.longest,
        "temperature": 0,
        "router_top_k": top_k,
    }
    return str(post("/v1/chat/completions", body)["choices"][0]["message"]["content"]).strip()


def over_http(url: str) -> Post:
    """Post to a server at `url`."""

    def post(path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            url.rstrip("/") + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)

    return post


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.router.soft", description="Compare one expert with two mixed ones.")
    parser.add_argument("--url", required=True, help="address of a server with a bundle of the real zoo")
    parser.add_argument("--count", type=positive, default=100, help="requests a task, at most (default 100)")
    parser.add_argument("--bare", action="store_true", help="ask the contents without a wording that names the task")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    asked = requests(options.count, options.bare)
    try:
        found = summary(asked, compare(over_http(options.url), asked))
    except OSError as error:
        parser.exit(1, f"error: {options.url} does not answer: {error}\n")
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for key, value in found.items():
        if key != "replies":
            print(f"{key:22}{value}", file=sys.stdout)


if __name__ == "__main__":
    main()
