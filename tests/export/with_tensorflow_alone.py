"""python with_tensorflow_alone.py MODEL_FOLDER OUTPUT_FOLDER IMAGE...

A client that has TensorFlow and NumPy alone: sends image files to the signature "encoded_images" and writes its outputs to
OUTPUT_FOLDER/<name>.npy, as export/cpp's program does.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

model, output, *images = map(Path, sys.argv[1:])
signature = tf.saved_model.load(str(model)).signatures["encoded_images"]
for name, value in signature(image_bytes=tf.constant([image.read_bytes() for image in images])).items():
    np.save(output / f"{name}.npy", value.numpy())
foreign = {"keras_seg"} & sys.modules.keys()
sys.exit(f"imported: {foreign}" if foreign else 0)
