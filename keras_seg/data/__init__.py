"""Annotated images as `tf.data.Dataset`s: of training tiles `isbi`, `cell_tracking`, `folder`; of batches for detectors
`coco`.

The functions take the names of their modules here; `from keras_seg.data.isbi import read` still reaches into
a module.
"""

from __future__ import annotations

from keras_seg.data.cell_tracking import cell_tracking
from keras_seg.data.coco import coco
from keras_seg.data.folder import folder
from keras_seg.data.isbi import isbi

__all__ = ["cell_tracking", "coco", "folder", "isbi"]
