"""U-Net (Ronneberger, Fischer, Brox, 2015): a contracting path, an expansive path, skip connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_seg import losses

PADDINGS = ("valid", "same")
NORMALIZATIONS = (None, "batch", "group")
ACTIVATIONS = ("softmax", "sigmoid")
CONVOLUTIONS = 2  # 3x3 ones at each level, down and up, each of which reaches one pixel further


@keras.saving.register_keras_serializable("keras_seg")
class TileCheck(layers.Layer):
    """Passes its input on, and refuses tiles that would be pooled at an odd size (Section 2, last paragraph).

    A size that is known when the graph is built raises a ValueError; one that is known only when it runs (a
    dynamic SavedModel, say) an InvalidArgumentError.
    """

    def __init__(self, depth: int, padding: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth, self.padding = depth, padding

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """images: float32 [B, H, W, C]. Returns them unchanged."""
        static = images.shape[1:3]
        if None not in static:
            check_size(*static, depth=self.depth, padding=self.padding)
            return images
        smallest, multiple = _smallest(self.depth, self.padding), 2**self.depth
        beyond = tf.shape(images)[1:3] - smallest
        legal = tf.reduce_all((beyond >= 0) & (beyond % multiple == 0))
        message = (
            f"U-Net: illegal tile; sides must be {smallest} or a multiple of {multiple} pixels more. Got"
        )
        with tf.control_dependencies([tf.debugging.Assert(legal, [message, tf.shape(images)])]):
            return tf.identity(images)

    def get_config(self) -> dict:
        return {**super().get_config(), "depth": self.depth, "padding": self.padding}


@keras.saving.register_keras_serializable("keras_seg")
class UNet(keras.Model):
    """The functional model that `unet` builds, with its training step and the arithmetic of its tiles."""

    def __init__(
        self,
        *,
        input_channels: int = 1,
        classes: int = 2,
        depth: int = 4,
        base_channels: int = 64,
        padding: str = "valid",
        normalization: str | None = None,
        dropout: float = 0.5,
        activation: str = "softmax",
        class_names: Sequence[str] | None = None,
        tile: int | None = None,
        rotations: int = 1,
        name: str = "unet",
    ) -> None:
        _check_arguments(
            input_channels,
            classes,
            depth,
            base_channels,
            padding,
            normalization,
            dropout,
            activation,
            class_names,
            rotations,
        )
        image, probabilities = _graph(
            input_channels, classes, depth, base_channels, padding, normalization, dropout, activation
        )
        super().__init__(image, probabilities, name=name)
        self.input_channels, self.classes, self.depth, self.base_channels = (
            input_channels, classes, depth, base_channels,
        )  # fmt: skip
        self.padding, self.normalization, self.dropout, self.activation = (
            padding, normalization, dropout, activation,
        )  # fmt: skip
        self.class_names = list(class_names) if class_names is not None else None
        self.tile, self.rotations = tile, rotations
        self._mean_loss = keras.metrics.Mean(name="loss")
        self._logits = keras.Model(self.input, self.get_layer("logits").output)
        if tile is not None:
            self.check_size(tile + 2 * self.margin, tile + 2 * self.margin)

    # -- the arithmetic of tiles -------------------------------------------------------------------------------

    @property
    def margin(self) -> int:
        """Pixels that the output lacks on each side of the input (92 for the paper's network, 0 for "same")."""
        return _margin(self.depth, self.padding)

    @property
    def context(self) -> int:
        """Pixels around a tile that can influence it if its sides lie at multiples of 2**depth, as pooled blocks do; rounded
        up to such a multiple."""
        reach = 0
        for _ in range(self.depth):  # down to the bottom, each map as far as the one above needs it
            reach = math.ceil((reach + CONVOLUTIONS) / 2)
        reach += CONVOLUTIONS
        for _ in range(self.depth):
            reach = 2 * reach + CONVOLUTIONS
        return math.ceil(reach / 2**self.depth) * 2**self.depth

    def output_size(self, size: int) -> int:
        """Side of the output for an input of `size` pixels a side; ValueError if that size is illegal."""
        self.check_size(size, size)
        return size - 2 * self.margin

    def legal_sizes(self, size: int) -> tuple[int | None, int]:
        """The nearest legal input sides: (the largest <= size, or None; the smallest >= size)."""
        return _legal_sizes(size, self.depth, self.padding)

    def check_size(self, height: int, width: int) -> None:
        """Raises a ValueError that names the nearest legal sizes unless height and width are legal input sides."""
        check_size(height, width, depth=self.depth, padding=self.padding)

    # -- training ----------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """The weighted cross-entropy of equation 1, on logits.

        batch: "image" float32 [B, H, W, C], 0-255; "label" int32 [B, h, w], -1 = ignore; "weight" float32
        [B, h, w] (optional). Returns {"loss": scalar}.
        """
        logits = self._logits(batch["image"], training=training)
        loss = losses.weighted_crossentropy(
            batch["label"], logits, batch.get("weight"), activation=self.activation
        )
        return {"loss": loss}

    def optimize(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of the compiled optimizer on a batch; returns the losses before the step, as `compute_losses`."""
        terms, gradients = self.gradients(batch)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return terms

    def gradients(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """The losses of a batch, and what they give the trainable variables for the compiled optimizer.

        Under a distribution strategy, one replica's part of it: the sum over replicas is the gradient of the mean loss.
        """
        with tf.GradientTape() as tape:
            terms = self.compute_losses(batch, training=True)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = self.optimizer.scale_loss(terms["loss"] / replicas)
        return terms, tape.gradient(loss, self.trainable_variables)

    @property
    def metrics(self) -> list[keras.Metric]:
        """The running mean of the loss, which Keras resets at each epoch."""
        return [self._mean_loss]

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._running_mean(self.optimize(batch))

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._running_mean(self.compute_losses(batch))

    def _running_mean(self, terms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        self._mean_loss.update_state(terms["loss"])
        return {"loss": self._mean_loss.result()}

    def get_config(self) -> dict:
        names = (
            "input_channels", "classes", "depth", "base_channels", "padding", "normalization", "dropout",
            "activation", "class_names", "tile", "rotations", "name",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> UNet:
        return cls(**config)


def unet(
    input_channels: int = 1,
    classes: int = 2,
    *,
    depth: int = 4,
    base_channels: int = 64,
    padding: str = "valid",
    normalization: str | None = None,
    dropout: float = 0.5,
    activation: str = "softmax",
    class_names: Sequence[str] | None = None,
    tile: int | None = None,
    rotations: int = 1,
    name: str = "unet",
) -> UNet:
    """A U-Net: images [B, H, W, input_channels], 0-255, to probabilities float32 [B, h, w, classes].

    With the defaults it is the network of Figure 1: 572x572x1 to 388x388x2 in 23 convolutional layers. The layer
    "logits" holds the values before the soft-max.

    Args:
        input_channels: channels of the image.
        classes: output channels; 0 is the background.
        depth: number of 2x2 poolings.
        base_channels: channels of the first level; they double at each pooling.
        padding: "valid" as in the paper (the output lacks `model.margin` pixels a side) or "same".
        normalization: None as in the paper, "batch", or "group" (8 groups; for small batches).
        dropout: rate of the two drop-out layers at the end of the contracting path (Section 3.1).
        activation: "softmax", or "sigmoid" for classes that may overlap.
        class_names: one name a class, kept with the model.
        tile: default side of an output tile for `keras_seg.segment`; None lets it choose.
        rotations: default number of rotated and mirrored versions that `keras_seg.segment` averages.
        name: name of the Keras model.

    Convolutions are initialised from N(0, sqrt(2/N)), not truncated, N the incoming nodes of one neuron (Section 3).

    Raises:
        ValueError: for an argument outside its range.

    Example:
        >>> model = unet(base_channels=4)
        >>> model.output_size(572)
        388
    """
    return UNet(
        input_channels=input_channels,
        classes=classes,
        depth=depth,
        base_channels=base_channels,
        padding=padding,
        normalization=normalization,
        dropout=dropout,
        activation=activation,
        class_names=class_names,
        tile=tile,
        rotations=rotations,
        name=name,
    )


def check_size(height: int, width: int, *, depth: int, padding: str) -> None:
    """Raises a ValueError that names the nearest legal sizes unless a tile [height, width] is legal."""
    for side, size in (("height", height), ("width", width)):
        below, above = _legal_sizes(size, depth, padding)
        if size != above:
            nearest = f"{below} or {above}" if below is not None else f"{above} (the smallest)"
            raise ValueError(
                f"U-Net with depth={depth}, padding={padding!r}: {size} is no legal tile {side}; "
                f"nearest legal: {nearest}. keras_seg.segment takes images of any size."
            )


def _margin(depth: int, padding: str) -> int:
    if padding == "same":
        return 0
    # Two 3x3 convolutions lose 2 pixels a side at their own level: down and up at levels 0 … depth - 1, and the bottom.
    return sum(2 * 2 * 2**level for level in range(depth)) + 2 * 2**depth


def _smallest(depth: int, padding: str) -> int:
    """The smallest legal input side; the others are multiples of 2**depth larger."""
    multiple = 2**depth
    if padding == "same":
        return multiple
    # The convolutions before each pooling lose 4 pixels at their level, so legal sides are lost + a multiple; the
    # smallest leaves at least one pixel of output.
    lost = 4 * (multiple - 1)
    return lost + (2 * _margin(depth, padding) - lost) // multiple * multiple + multiple


def _legal_sizes(size: int, depth: int, padding: str) -> tuple[int | None, int]:
    smallest, multiple = _smallest(depth, padding), 2**depth
    steps = (size - smallest) / multiple
    below = smallest + math.floor(steps) * multiple
    return (below if below >= smallest else None), smallest + max(0, math.ceil(steps)) * multiple


def _check_arguments(
    input_channels: Any,
    classes: Any,
    depth: Any,
    base_channels: Any,
    padding: Any,
    normalization: Any,
    dropout: Any,
    activation: Any,
    class_names: Any,
    rotations: Any,
) -> None:
    for field, value in (
        ("input_channels", input_channels),
        ("classes", classes),
        ("depth", depth),
        ("base_channels", base_channels),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"unet: {field} must be a positive integer, got {value!r}")
    for field, value, allowed in (
        ("padding", padding, PADDINGS),
        ("normalization", normalization, NORMALIZATIONS),
        ("activation", activation, ACTIVATIONS),
    ):
        if value not in allowed:
            raise ValueError(f"unet: {field} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if rotations not in range(1, 9):
        raise ValueError(f"unet: rotations must be an integer from 1 to 8, got {rotations!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"unet: dropout must be in [0, 1), got {dropout!r}")
    if activation == "softmax" and classes < 2:
        raise ValueError(
            "unet: a soft-max needs classes >= 2 (background is one of them); or use activation='sigmoid'"
        )
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"unet: {len(class_names)} class_names for classes={classes}")


def _graph(input_channels, classes, depth, base_channels, padding, normalization, dropout, activation):
    """The functional graph: (input, probabilities)."""

    def block(x, name, channels, drop=False):
        for index in (1, 2):
            fan_in = 9 * x.shape[-1]
            x = layers.Conv2D(
                channels, 3, padding=padding, use_bias=normalization is None,
                kernel_initializer=_gaussian(fan_in), name=f"{name}_conv{index}",
            )(x)  # fmt: skip
            if normalization == "batch":
                x = layers.BatchNormalization(name=f"{name}_norm{index}")(x)
            elif normalization == "group":
                x = layers.GroupNormalization(math.gcd(8, channels), name=f"{name}_norm{index}")(x)
            x = layers.ReLU(name=f"{name}_relu{index}")(x)
        return layers.Dropout(dropout, name=f"{name}_dropout")(x) if drop and dropout else x

    image = keras.Input((None, None, input_channels), name="image")
    x = TileCheck(depth, padding, name="tile_check")(image)
    x = layers.Rescaling(1 / 255, name="rescaling")(x)
    skips = []
    for level in range(1, depth + 1):
        x = block(x, f"enc{level}", base_channels * 2 ** (level - 1), drop=level == depth)
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"enc{level}_pool")(x)
    x = block(x, "bottom", base_channels * 2**depth, drop=True)
    crop = 0  # pixels a side by which a skip exceeds the upsampled map, at the skip's resolution
    for level in range(depth, 0, -1):
        channels = base_channels * 2 ** (level - 1)
        # stride 2, kernel 2: each output pixel sees one input pixel, so N is the number of its channels
        x = layers.Conv2DTranspose(
            channels, 2, strides=2, kernel_initializer=_gaussian(x.shape[-1]), name=f"dec{level}_up"
        )(x)
        skip = skips[level - 1]
        if padding == "valid":
            crop = 2 * (crop + 2)
            skip = layers.Cropping2D(crop, name=f"dec{level}_crop")(skip)
        x = layers.Concatenate(name=f"dec{level}_concat")([skip, x])
        x = block(x, f"dec{level}", channels)
        crop += 2
    logits = layers.Conv2D(
        classes, 1, kernel_initializer=_gaussian(x.shape[-1]), dtype="float32", name="logits"
    )(x)  # fmt: skip
    return image, layers.Activation(activation, dtype="float32", name="probabilities")(logits)


def _gaussian(incoming: int) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=math.sqrt(2 / incoming))
