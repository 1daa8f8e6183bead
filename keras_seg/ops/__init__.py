"""Operations on boxes, anchors, regions of interest and masks: TensorFlow or NumPy, and nothing else of keras_seg."""
