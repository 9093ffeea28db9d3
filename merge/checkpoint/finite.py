"""Looking for NaN and infinity without a pass of its own where there is none."""

import torch
from torch import Tensor


def count_not_finite(tensor: Tensor) -> int:
    """How many elements are NaN or infinite.

    One sum tells that there is none, at the speed of memory: nothing finite can be added to NaN or infinity to make it
    finite. Only where the sum is not finite (which large numbers can bring about, too) are the elements looked at.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0
    if bool(torch.isfinite(tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32))):
        return 0
    return tensor.numel() - int(torch.isfinite(tensor).sum())
