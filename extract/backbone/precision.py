"""How exactly float32 is computed on a GPU: set here, and nowhere else, for every program."""

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


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Set how this process multiplies float32 during the context."""
    before = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    convolutions, benchmark = cudnn.allow_tf32, cudnn.benchmark
    set_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32, cudnn.benchmark = convolutions, benchmark
