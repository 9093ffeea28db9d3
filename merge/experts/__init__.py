"""Cutting experts: from a fine-tune and the stored backbone to a small residual.

`extract` puts one task's expert together and `jobs` does that for many. Its parts are low-rank (`low_rank`, in the
metric of `grams`), sparse (`sparse`: `magnitude` is the paper's data-free expert, `activation` chooses entries by what
the layers compute on prompts of the task, with `inputs` and `fit`), or a LoRA's own factors (`lora`); `factored` shares
a `budget` of bytes between weights and kinds. `examples`, `encoding` and `calibration` make the prompts; `distill`
trains the numbers and `storage` rounds them; `concerns` says what looks wrong with an expert; `running` loads and runs
the checkpoints.
"""

from merge.experts.concerns import concerns, foreseen
from merge.experts.config import CalibrationConfig, ExpertConfig
from merge.experts.encoding import PromptEncoder, encode_prompts, own_encoders, prompt_encoder
from merge.experts.examples import CalibrationError, Example, read_examples, read_prompts, texts
from merge.experts.extract import cut_expert
from merge.experts.jobs import ExpertReport, Job, JobError, Prompts, run_jobs, usual_workers
from merge.experts.lora import why_no_lora
from merge.experts.magnitude import code_factor
from merge.experts.memory import job_bytes
from merge.experts.running import build_model, check_runs, end_tokens, load_tokenizer
from merge.experts.sources import Calibration, Cut, Sources
from merge.experts.sparse import expert_factors, task_magnitudes

__all__ = [
    "Calibration",
    "CalibrationConfig",
    "CalibrationError",
    "Cut",
    "Example",
    "ExpertConfig",
    "ExpertReport",
    "Job",
    "JobError",
    "PromptEncoder",
    "Prompts",
    "Sources",
    "build_model",
    "check_runs",
    "code_factor",
    "concerns",
    "cut_expert",
    "encode_prompts",
    "end_tokens",
    "expert_factors",
    "foreseen",
    "job_bytes",
    "load_tokenizer",
    "own_encoders",
    "prompt_encoder",
    "read_examples",
    "read_prompts",
    "run_jobs",
    "task_magnitudes",
    "texts",
    "usual_workers",
    "why_no_lora",
]
