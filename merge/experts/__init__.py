"""Cutting experts: from a fine-tune and the stored backbone to a sparse residual.

`magnitude` is the paper's data-free expert; `activation` chooses entries by what the layers compute on prompts of the
task (`calibration`, `inputs`, `fit`); `distill` trains the kept values and `storage` rounds them; `extract` puts one
task's expert together and `jobs` does that for many; `running` loads and runs the checkpoints.
"""

from merge.experts.calibration import CalibrationError, read_prompts
from merge.experts.config import CalibrationConfig, ExpertConfig
from merge.experts.extract import Calibration, Cut, Sources, cut_expert, task_magnitudes
from merge.experts.jobs import ExpertReport, Job, JobError, Prompts, job_bytes, run_jobs, usual_workers
from merge.experts.magnitude import code_factor, paper_factors
from merge.experts.running import build_model, check_runs, end_tokens, load_tokenizer

__all__ = [
    "Calibration",
    "CalibrationConfig",
    "CalibrationError",
    "Cut",
    "ExpertConfig",
    "ExpertReport",
    "Job",
    "JobError",
    "Prompts",
    "Sources",
    "build_model",
    "check_runs",
    "code_factor",
    "cut_expert",
    "end_tokens",
    "job_bytes",
    "load_tokenizer",
    "paper_factors",
    "read_prompts",
    "run_jobs",
    "task_magnitudes",
    "usual_workers",
]
