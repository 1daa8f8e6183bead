"""Many images on many machines: a folder in, COCO JSON or label tiles out, by a pipeline of Apache Beam.

keras_seg.batch.run("maskrcnn_nuclei", "plates/", "results/")
"""

from keras_seg.batch.running import Summary, results, run

__all__ = ["Summary", "results", "run"]
