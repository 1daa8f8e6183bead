"""Scores of the field's benchmarks, in NumPy and SciPy alone.

`isbi`: the ISBI 2012 electron microscopy challenge (pixel, Rand and warping error, V_rand, V_info).
`cell_tracking`: SEG of the Cell Tracking Challenge.
"""

from keras_seg.metrics import cell_tracking, isbi

__all__ = ["cell_tracking", "isbi"]
