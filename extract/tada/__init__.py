"""TAdaConv (Huang et al., ICLR 2022) and the networks built with it."""

from extract.tada.conv import TAdaConv, calibrate_convs

__all__ = ["TAdaConv", "calibrate_convs"]
