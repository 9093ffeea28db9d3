"""Reading adapter_config.json for a merge."""

from pathlib import Path

from merge.bundle.adapter_config import ADAPTER_CONFIG, AdapterConfig, AdapterError, parse_adapter_config
from merge.checkpoint import CheckpointError, read_json


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read a directory's adapter_config.json.

    Raises:
        CheckpointError: the file is missing, a field is malformed, or the adapter is not a plain LoRA.
    """
    path = directory / ADAPTER_CONFIG
    try:
        return parse_adapter_config(read_json(path), str(path))
    except AdapterError as error:
        raise CheckpointError(*error.faults) from error
