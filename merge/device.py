"""Where a merge computes: on the processor, or on a GPU to which tensors are copied as they are read."""

import torch

from merge.bundle import available_host_bytes

CPU = torch.device("cpu")


class DeviceError(ValueError):
    """The device does not exist. The message is one line."""


def find_device(name: str) -> torch.device:
    """The device that `--device` names.

    Args:
        name: `auto` (the first GPU, or the processor if there is none), `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: another name, or a GPU that is not there.
    """
    kind, _, number = name.partition(":")
    known = name in {"auto", "cpu"} or (kind == "cuda" and (number.isdecimal() or name == "cuda"))
    if not known:
        raise DeviceError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise DeviceError("cuda is not available; use --device cpu, or install a build of torch for CUDA and a driver")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise DeviceError(f"device is {name!r}, but this machine has {count}: the last one is cuda:{count - 1}")
    return torch.device("cuda", int(number or 0))


def available_bytes(device: torch.device) -> int:
    """Bytes that may still be allocated on a device."""
    return available_host_bytes() if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0])
