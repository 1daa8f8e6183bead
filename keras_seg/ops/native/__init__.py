"""RoIAlign as a compiled TensorFlow operation: its sources, how they are built, found and called."""
