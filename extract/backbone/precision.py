"""The precision of computing: how a GPU multiplies float32 is set here, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from extract.settings.backbone import Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(precision: Precision) -> None:
    """Set how this process multiplies float32.

    Torch's own defaults are neither: convolutions are TF32, products of matrices are not.
    """
    fast = precision == "tf32"
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast
    # Tries all ways to compute a convolution and keeps the fastest, another one in every run.
    torch.backends.cudnn.benchmark = precision != "fp32"


def working_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return what products are rounded to on a device; None for float32.

    As accelerate has it: fp16 is for GPUs, and a CPU computes such a model in float32.
    """
    return None if (precision, device.type) == ("fp16", "cpu") else AUTOCAST.get(precision)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which products are rounded to `working_dtype`."""
    half = working_dtype(precision, device)
    return torch.autocast(device.type, half, enabled=half is not None)


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute on a device as a run of this precision does, during the context."""
    before = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    convolutions, benchmark = cudnn.allow_tf32, cudnn.benchmark
    set_precision(precision)
    try:
        with autocast(precision, device):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32, cudnn.benchmark = convolutions, benchmark
