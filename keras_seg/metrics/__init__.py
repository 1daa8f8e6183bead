"""Scores of the field's benchmarks, in NumPy and SciPy, and pycocotools for COCO's.

`isbi`: the ISBI 2012 electron microscopy challenge (pixel, Rand and warping error, V_rand, V_info).
`cell_tracking`: SEG of the Cell Tracking Challenge.
`coco`: average precision and recall of boxes, masks and keypoints.
`proposals`: average recall of a region proposal network.
"""

from keras_seg.metrics import cell_tracking, coco, isbi, proposals

__all__ = ["cell_tracking", "coco", "isbi", "proposals"]
