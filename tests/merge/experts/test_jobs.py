"""Jobs in separate processes and tasks end with the merge that started them."""

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merge.experts import job_bytes
from merge.experts import jobs as jobs_module
from merge.experts.jobs import Job, JobError, run_jobs, usual_workers


class Endless:
    """Takes ten minutes to unpickle: a job with it keeps its process busy."""

    def __reduce__(self) -> tuple[Callable[[float], None], tuple[float]]:
        return time.sleep, (600.0,)


def endless_jobs(folder: Path) -> list[Job]:
    made: Any = Endless()
    return [Job(name, made, made, None, 1.0, folder / name) for name in ("a", "b", "c")]


@contextmanager
def interrupted_when(ready: Callable[[], bool]) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread, as SIGTERM's handler does, once something is so."""

    def look(*_: object) -> None:
        if ready():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_merge_ends_its_workers(tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())
    started: set[multiprocessing.process.BaseProcess] = set()

    def both_run() -> bool:
        started.update(set(multiprocessing.active_children()) - others)
        return len(started) == 2

    with interrupted_when(both_run), pytest.raises(KeyboardInterrupt):
        list(run_jobs(endless_jobs(tmp_path), workers=2))
    assert len(started) == 2
    for child in started:
        child.join(60)  # of the ten minutes that it would have slept
    assert not any(child.is_alive() for child in started)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_ends_with_a_parent_that_was_killed(method: str) -> None:
    command = [sys.executable, "-m", "tests.merge.experts.orphan", method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
    while is_running(worker):
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Deadly:
    """Kills the process that unpickles it, as the kernel does if memory runs out."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    made: Any = Deadly()
    job = Job("a", made, made, None, 1.0, tmp_path / "a")
    with pytest.raises(JobError, match="a worker process was killed.*fewer --workers"):
        list(run_jobs([job], workers=2))


@pytest.mark.parametrize(("free", "workers"), [(0, 1), (5 << 30, 1), (13 << 30, 3), (50 << 30, 4)])
def test_as_many_workers_as_memory_has_room_for(monkeypatch: pytest.MonkeyPatch, free: int, workers: int) -> None:
    monkeypatch.setattr(jobs_module, "available_host_bytes", lambda: free)
    monkeypatch.setattr(jobs_module, "available_cores", lambda: 4)
    assert usual_workers(4 << 30, 8) == workers
    assert usual_workers(4 << 30, 1) == 1


def model_of(sizes: dict[str, tuple[int, ...]]) -> Any:
    return SimpleNamespace(tensors={name: SimpleNamespace(shape=shape) for name, shape in sizes.items()})


def test_what_a_job_takes_does_not_grow_with_the_layers() -> None:
    """A model of 8 billion parameters, whose head and embedding no LoRA changes."""
    ends = {"model.embed_tokens.weight": (128_256, 4_096), "lm_head.weight": (128_256, 4_096)}
    layers = {f"model.layers.{n}.mlp.down_proj.weight": (4_096, 14_336) for n in range(119)}
    base = model_of({**ends, **layers})
    assert job_bytes(base, False, changed=layers.keys()) < 2 << 30
    assert 4 << 30 < job_bytes(base, False) < 6 << 30
    assert job_bytes(base, True, changed=layers.keys()) < 20 << 30
    assert job_bytes(base, True, "sparse") > 150 << 30
    small = model_of({f"layer{n}": (1_000, 1_000) for n in range(10)})
    assert job_bytes(small, True) == (400 << 20) + 20 * 10**7


class Pool:
    """Ray's pool as far as `run_jobs` sees it: the first task fails, the others run on."""

    def __init__(self) -> None:
        self.tasks: list[Future[Any]] = []

    def submit(self, *_: object) -> Future[Any]:
        self.tasks.append(Future())
        if len(self.tasks) == 1:
            self.tasks[0].set_exception(ValueError("no"))
        return self.tasks[-1]


def test_when_a_ray_task_fails_the_others_are_cancelled(tmp_path: Path) -> None:
    pool: Any = Pool()
    with pytest.raises(ValueError, match="no"):
        list(run_jobs(endless_jobs(tmp_path), 1, pool))
    assert [task.cancelled() for task in pool.tasks] == [False, True, True]
