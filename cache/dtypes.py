"""Names of the types of numbers that a store keeps."""

from typing import Literal

Dtype = Literal["float32", "float16", "bfloat16"]
