"""What to do when the memory does not suffice, said where it is known what takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def advising(what: str, advice: str) -> Iterator[None]:
    """Raises MemoryError, "not enough memory for `what`: `advice`", where the block runs out of the processor's or a GPU's
    memory (TensorFlow's ResourceExhaustedError, NumPy's MemoryError)."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise MemoryError(f"not enough memory for {what}: {advice}") from error
