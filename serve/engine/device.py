"""The device that an engine computes on, and how torch is set for it."""

import torch

from serve.config.engine import EngineConfig
from serve.engine.errors import EngineError


def device_of(config: EngineConfig) -> torch.device:
    """The device that the settings ask for.

    Raises:
        EngineError: it is not a device that there is; the message names it.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise EngineError(f"device {config.device!r} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device {config.device!r} is asked for, but torch finds no GPU here")
    return device


def prepare(device: torch.device) -> None:
    """Set torch for serving on a device. On a CPU nothing changes.

    * cuDNN's attention builds a plan for every pair of a batch size and a length and keeps it, which takes tens of
      milliseconds in nearly every step that is not captured, and with cuDNN 9.19 to 9.25 its result for one query
      token is wrong on sm_100 (pytorch/pytorch#193893). Torch prefers it on sm_90 and above unless it is off.
    * By default cuBLAS may add the parts of a split sum in 16 bits. All sums here are in fp32.
    """
    if device.type != "cuda":
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def is_lost(error: BaseException) -> bool:
    """Whether an error says that the device is lost to this process.

    After an illegal access or a failed launch every later call of the CUDA runtime fails as well. A lack of memory is
    not such an error.
    """
    if not isinstance(error, RuntimeError) or "out of memory" in str(error):
        return False
    return isinstance(error, torch.AcceleratorError) or str(error).startswith("CUDA error")
