"""A merge that is killed at a moment that a number names, whatever the machine's speed."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401 - once in the server, not once a merge

from merge.run import merge_recipe

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def kill_at(number: int, folder: Path) -> None:
    """End this process with SIGKILL at the number-th time that it opens, renames or removes something in a folder."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def merge_killed(recipe: Path, out: Path, event: int, resume: bool) -> bool:
    """Merge in a separate process that is killed at an event; returns whether it was."""
    # The server of the fixture `fork_server` has this module loaded, so a process is forked from it in milliseconds.
    process = multiprocessing.get_context("forkserver").Process(target=_merge, args=(recipe, out, event, resume))
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def _merge(recipe: Path, out: Path, event: int, resume: bool) -> None:
    kill_at(event, out.parent)
    merge_recipe(recipe, out, progress=False, resume=resume)
