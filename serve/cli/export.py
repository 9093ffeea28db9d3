"""`overtone export`: one task of a bundle, for other programs."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.cli.options import option

if TYPE_CHECKING:
    from merge.export import AdapterReport, DenseReport


LARGE = 0.3
"""Relative error of an adapter above which there is a warning: a sparse part seldom has a low rank."""


class Format(StrEnum):
    """What can be written."""

    HF = "hf"
    PEFT = "peft"


class Dtype(StrEnum):
    """How a dense checkpoint's weights can be stored."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The directory to write.", show_default=False)],
    task: Annotated[str, option("--task", help="The expert's name.", show_default=False)],
    format_: Annotated[
        Format, option("--format", help="hf: a dense checkpoint; peft: a low-rank adapter of the backbone.")
    ] = Format.HF,
    dtype: Annotated[
        Dtype | None, option("--dtype", help="hf: store the weights in this dtype instead of the backbone's.")
    ] = None,
    rank: Annotated[
        int | None,
        option(
            "--rank",
            help="peft: the adapter's rank. Default: the largest rank of the expert, if it has no sparse part.",
            min=1,
        ),
    ] = None,
    norms: Annotated[
        bool, option("--norms", help="peft: include changed norms as whole tensors. PEFT loads them, vLLM does not.")
    ] = False,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write one task as a checkpoint that transformers loads, or as a LoRA for PEFT, vLLM or LoRAX."""
    if format_ is Format.PEFT and dtype is not None:
        raise typer.BadParameter(
            "is only valid with --format hf: the dtype of an adapter cannot be chosen", param_hint="--dtype"
        )
    if format_ is Format.HF and (rank is not None or norms):
        raise typer.BadParameter(
            "is only valid with --format peft", param_hint="--rank" if rank is not None else "--norms"
        )

    import torch  # takes a second to import; --help should not

    from merge.bundle import open_bundle
    from merge.export import MissingRankError, export_adapter, export_dense

    opened = open_bundle(bundle)
    report: DenseReport | AdapterReport
    if format_ is Format.HF:
        report = export_dense(opened, task, out, None if dtype is None else getattr(torch, dtype))
        text = _dense_text(report)
    else:
        try:
            report = export_adapter(opened, task, out, rank, norms)
        except MissingRankError as error:
            raise typer.BadParameter(str(error), param_hint="--rank") from error
        text = _adapter_text(report)
    typer.echo(json.dumps(asdict(report), default=str) if as_json else text)


def _dense_text(report: "DenseReport") -> str:
    text = f"{report.out}: {report.task} as a dense checkpoint, {report.bytes:,} bytes"
    if not report.rounding:
        return text
    return (
        f"{text}\n  rounding the sum to {report.dtype} costs {report.rounding:.2%} of the residual: replies can differ "
        "from serving the bundle, which adds the two products in float32; --dtype float32 keeps the sum exact"
    )


def _adapter_text(report: "AdapterReport") -> str:
    lines = [f"{report.out}: {report.task} as a LoRA of rank {report.rank}, {report.bytes:,} bytes"]
    if report.lossless:
        lines.append("  all low-rank parts of the expert are in it without loss")
    else:
        lines.append(f"  relative Frobenius error of all weights together {report.error:.1%}, and of each:")
        lines += [f"    {error:.1%}  {name}" for name, error in report.layers.items()]
    if report.error > LARGE:
        lines.append("  the adapter probably does not answer like the expert: try a higher --rank, or --format hf")
    if report.kept_whole:
        lines.append(f"  kept whole (PEFT only): {', '.join(report.kept_whole)}")
    if report.dropped:
        lines.append("  not in it, with the change relative to the parameter (--norms includes norms, for PEFT only):")
        lines += [f"    {share:.2%}  {name}" for name, share in report.dropped.items()]
    return "\n".join(lines)
