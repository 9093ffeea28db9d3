"""A demo's self-test: a real server in another process, asked over HTTP."""

from functools import partial
from pathlib import Path

from benchmarks.demo.prompts import shipped_lines
from merge.bundle import Bundle, open_bundle
from merge.evaluate import Evaluation, References, Server, evaluate
from merge.progress import Progress
from serve.child import serving


def check(bundle: Path, chat: bool, prompts: int) -> Evaluation:
    """Serve a demo's bundle on a free port and measure it over HTTP; progress goes to stderr.

    Args:
        bundle: the demo's.
        chat: whether it is asked with messages, or with plain prompts.
        prompts: unseen ones a task.

    Raises:
        ValueError: the server did not become ready, or the bundle is not a demo's.
    """
    opened = open_bundle(bundle)
    with serving(bundle) as child:
        return measured(Server(child.url, child.api_key), opened, chat, prompts, Progress())


def measured(server: Server, bundle: Bundle, chat: bool, prompts: int, progress: Progress | None = None) -> Evaluation:
    """Measure a demo's bundle, beside its base and its fine-tunes.

    Args:
        server: serves it.
        bundle: what it serves.
        chat: whether it is asked with messages, or with plain prompts.
        prompts: unseen ones a task.
        progress: told how far it is.

    Raises:
        ValueError: the bundle is not a demo's.
    """
    lines = shipped_lines(bundle.expert_names, prompts)
    if lines is None:
        raise ValueError(f"{bundle.path} is not the bundle of a demo")
    return evaluate(
        partial(server.ask, chat=chat),
        server.served(),
        lines,
        bundle=bundle,
        references=References(bundle, chat),
        progress=progress,
        name=bundle.manifest.name,
    )
