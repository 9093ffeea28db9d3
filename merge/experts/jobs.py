"""Cutting the experts of many tasks, several at a time.

A job holds no weights: it opens its fine-tune, builds a decoder, writes the expert's file and returns a report. So it
gives the same file in this process and in another, and whatever else runs.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from merge.bundle import GenerationSettings, available_cores, available_host_bytes, expert_bytes, write_expert
from merge.checkpoint import Checkpoint
from merge.experts.extract import cut_expert, cut_whole, steps_of
from merge.experts.running import MODEL_IMPORTS, build_model, end_tokens, load_tokenizer
from merge.experts.sources import Calibration, Cut, Sources
from merge.lifetime import die_with_parent
from merge.progress import Progress
from merge.ray_pool import RayPool
from merge.wording import counted


class JobError(ValueError):
    """A job's process ended before the job did. The message is one line."""


@dataclass(frozen=True)
class Prompts:
    """A task's calibration prompts.

    Attributes:
        tokens: token ids of each.
        answer_tokens: most tokens of the fine-tune's continuation.
        replies: the fine-tune's continuation of each, if a backbone of 4 bits was fitted to it; None: not known.
    """

    tokens: tuple[tuple[int, ...], ...]
    answer_tokens: int
    replies: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class Job:
    """One expert to cut.

    Attributes:
        name: its task.
        fine_tune: θ_k.
        sources: base, stored backbone and settings.
        prompts: None if the settings need none.
        factor: μ for `rescaled` values.
        target: the file to write.
        shown: whether progress goes to stderr.
        settings: what the expert's requests follow in place of the backbone's.
    """

    name: str
    fine_tune: Checkpoint
    sources: Sources
    prompts: Prompts | None
    factor: float
    target: Path
    shown: bool = False
    settings: GenerationSettings = field(default_factory=GenerationSettings)


@dataclass(frozen=True)
class ExpertReport:
    """One expert as it was stored.

    Attributes:
        name: its task.
        nnz: entries that are not zero, dense deltas included.
        bytes: of its tensors.
        density: stored entries as a fraction of the weights that have a sparse part; 0 if none has.
        share: its bytes as a fraction of the backbone's.
        divergence: mean KL to the fine-tune on the calibration prompts, in nats a token: (backbone alone, with expert).
        factor: μ; None for values that are not `rescaled`.
        prompts: calibration prompts that it was cut with.
        empty: those to which the fine-tune replied with an end token alone.
        ranks: of the weights that have a low-rank part their number, the least rank, and the largest; None: no weight.
    """

    name: str
    nnz: int
    bytes: int
    density: float
    share: float
    divergence: tuple[float, float] | None
    factor: float | None = None
    prompts: int = 0
    empty: int = 0
    ranks: tuple[int, int, int] | None = None

    @property
    def parts(self) -> str:
        """What the expert holds of the 2-D weights, in words."""
        texts = []
        if self.ranks is not None:
            count, least, most = self.ranks
            texts.append(f"rank {least if least == most else f'{least} to {most}'} in {counted(count, 'weight')}")
        if self.density or self.ranks is None:
            texts.append(f"{self.density:.2%} of the entries" + (" of other weights" if self.ranks else ""))
        return ", ".join(texts)


def run_job(job: Job) -> ExpertReport:
    """Cut an expert and write its file."""
    whole = cut_whole(job.name, job.fine_tune, job.sources, job.prompts is not None)
    if whole is not None:  # no model is built
        write_expert(job.target, replace(whole.expert, settings=job.settings))
        return _report(whole, job, expert_bytes(job.target))
    calibration = None
    if job.prompts is not None:
        path = job.sources.base.path
        device = job.sources.base.device
        fine_tune = build_model(path, empty=True, device=device)
        student = build_model(path, empty=job.sources.config.form != "sparse", device=device)
        own = job.settings.end_tokens
        ends = end_tokens(student, load_tokenizer(job.sources.base.path)) if own is None else frozenset(own)
        folder = job.target.parent  # in the bundle's directory, which has room for much
        asked = job.prompts
        calibration = Calibration(
            fine_tune, student, asked.tokens, ends, asked.answer_tokens, folder, replies=asked.replies
        )
    steps = steps_of(job.sources, len(job.prompts.tokens) if job.prompts else 0)
    # The worker processes' bars stand beneath the one of all experts.
    row = 1 + next(iter(multiprocessing.current_process()._identity[-1:]), 0)
    with Progress(job.shown).stage(f"expert {job.name}", steps, row) as advance:
        cut = cut_expert(job.name, job.fine_tune, job.sources, calibration, job.factor, advance)
    write_expert(job.target, replace(cut.expert, settings=job.settings))
    return _report(cut, job, expert_bytes(job.target))


def run_jobs(jobs: Sequence[Job], workers: int, ray_pool: RayPool | None = None) -> Iterator[ExpertReport]:
    """Run jobs, `workers` at a time in separate processes, or one after another in this one; yields the reports.

    With a `ray_pool` they are its tasks, as many at a time as it has room for.

    The processes are forked from a server process that has imported torch and, if a model runs, transformers. They do
    not inherit this process' state, so a script that calls this needs the usual `if __name__ == "__main__"`. When the
    iteration ends early, by an error, Ctrl-C or `close`, the processes and tasks that still run are ended at once.

    Raises:
        JobError: a worker process was killed.
        ValueError: what a job raised; the others are cancelled.
    """
    if ray_pool is not None:
        tasks = [ray_pool.submit(run_job, job) for job in jobs]
        try:
            for done in as_completed(tasks):
                yield done.result()
        finally:
            for task in tasks:
                task.cancel()
        return
    if workers == 1:
        yield from map(run_job, jobs)
        return
    threads = max(1, available_cores() // workers)
    context = multiprocessing.get_context("forkserver")
    # Imports took 7 processor seconds of each process that was spawned. They are now done once, before the first fork.
    context.set_forkserver_preload(["__main__", __name__, *(MODEL_IMPORTS if any(job.prompts for job in jobs) else ())])
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(threads,)) as pool:
        try:
            for done in as_completed([pool.submit(run_job, job) for job in jobs]):
                yield done.result()
        except BrokenProcessPool as error:
            raise JobError(
                "a worker process was killed while it cut an expert, most often because memory ran out: "
                "merge again with --resume and fewer --workers"
            ) from error
        except BaseException:
            # A job takes minutes to hours, and its result has no reader any more.
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    die_with_parent()


def usual_workers(job: int, jobs: int) -> int:
    """The number of processes for the cores, the jobs and the memory within the limits of control groups.

    Args:
        job: bytes that one takes, as from `job_bytes`.
        jobs: experts to cut.
    """
    return max(1, min(available_cores(), jobs, available_host_bytes() // job))


def _report(cut: Cut, job: Job, size: int) -> ExpertReport:
    expert, sources = cut.expert, job.sources
    elements = sum(delta.index.shape[0] * sources.base.tensors[key].shape[1] for key, delta in expert.sparse.items())
    stored = sum(delta.index.numel() for delta in expert.sparse.values())
    return ExpertReport(
        name=expert.name,
        nnz=expert.nnz,
        bytes=size,
        density=stored / elements if elements else 0.0,
        share=size / sources.backbone.nbytes,
        divergence=cut.divergence,
        factor=cut.factor,
        prompts=0 if job.prompts is None or cut.divergence is None else len(job.prompts.tokens),
        empty=cut.empty,
        ranks=_ranks([delta.rank for delta in expert.low_rank.values()]),
    )


def _ranks(found: Sequence[int]) -> tuple[int, int, int] | None:
    return (len(found), min(found), max(found)) if found else None
