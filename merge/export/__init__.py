"""One task of a bundle for other programs: as a dense checkpoint, or as a low-rank adapter of the backbone.

`dense` adds the expert into the backbone's weights; `adapter` writes the PEFT directory, for which `low_rank` takes the
expert's own factors, or converts a residual with a sparse part to a LoRA.
"""

from merge.export.adapter import AdapterReport, MissingRankError, export_adapter
from merge.export.dense import DenseReport, export_dense

__all__ = ["AdapterReport", "DenseReport", "MissingRankError", "export_adapter", "export_dense"]
