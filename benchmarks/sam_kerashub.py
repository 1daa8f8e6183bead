"""KerasHub's SAM as a worker of sam.py: images and prompts in, masks out; runs in an environment of its own.

It knows nothing of keras_seg. The image is embedded once, and its prompts go through the decoder in groups. What the masks are
taken from is SAM's own way (Kirillov et al. 2023, Section 7.1 and its public automatic mask generator): of a box the one
mask that the decoder gives for it, of a point the best of its three by predicted overlap; of a grid of points those of a predicted
overlap of 0.88 and a stability of 0.95 at least, after suppression of boxes at 0.7.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# TensorFlow 2.21's oneDNN kernels corrupt the heap in SAM's mask decoder ("malloc(): unaligned tcache chunk detected").
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import numpy as np

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of SAM's images
GRID, PREDICTED, STABLE, OFFSET, OVERLAP = 32, 0.88, 0.95, 1.0, 0.7  # of SamAutomaticMaskGenerator
GROUP = 16  # prompts at once
RANDOM = "random"
NO_WEIGHTS = (
    "sam_kerashub: the weights of {name} could not be had ({error}). They come from Kaggle or Hugging Face (keras/{name}): "
    "on a machine with a network run keras_hub.models.SAMImageSegmenter.from_preset({name!r}).save_to_preset('sam/'), copy "
    "that folder here and give it as --sam sam/"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sam", required=True, help='a preset, a folder of one, or "random" for a tiny one')
    parser.add_argument(
        "--inputs", type=Path, required=True, help=".npz: image_N uint8 [H, W, 3], boxes_N, points_N"
    )
    parser.add_argument(
        "--outputs", type=Path, required=True, help=".npz: masks_N_PROMPT (bits), scores_N_PROMPT"
    )
    parser.add_argument("--prompts", nargs="+", choices=("boxes", "points", "grid"), required=True)
    parser.add_argument("--grid", type=int, default=GRID, help="points along each side of an image")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    sam = Sam(load(args.sam))
    inputs, outputs = np.load(args.inputs), {}
    numbers = sorted(int(name.split("_")[1]) for name in inputs.files if name.startswith("image_"))
    for n in numbers:
        print(f"SAM: image {n + 1} of {len(numbers)}", file=sys.stderr, flush=True)
        image = inputs[f"image_{n}"]
        look = sam.look(image)
        for prompt in args.prompts:
            if prompt == "grid":
                masks, scores = look.everything(args.grid)
            else:
                masks, scores = look.at(**{prompt: inputs[f"{prompt}_{n}"]})
            outputs[f"masks_{n}_{prompt}"] = np.packbits(
                masks.reshape(len(masks), image.shape[0] * image.shape[1]), axis=1
            )
            outputs[f"scores_{n}_{prompt}"] = scores
    np.savez(args.outputs, **outputs)


def load(name: str):
    import keras_hub

    if name == RANDOM:
        return tiny()
    try:
        return keras_hub.models.SAMImageSegmenter.from_preset(name)
    except Exception as error:  # noqa: BLE001 - Kaggle's, Hugging Face's and the file system's libraries have their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        sys.exit(NO_WEIGHTS.format(name=name, error=f"{type(error).__name__}: {reason}"))


def tiny(side: int = 128):
    """A SAM with random weights, that the path may be tried without a download."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    encoder = keras_hub.models.ViTDetBackbone(
        hidden_size=16, num_layers=2, intermediate_dim=32, num_heads=2, global_attention_layer_indices=[1], patch_size=16,
        num_output_channels=8, window_size=2, image_shape=(side, side, 3),
    )  # fmt: skip
    prompts = keras_hub.layers.SAMPromptEncoder(
        hidden_size=8,
        image_embedding_size=(side // 16, side // 16),
        input_image_size=(side, side),
        mask_in_channels=16,
    )
    decoder = keras_hub.layers.SAMMaskDecoder(
        num_layers=2, hidden_size=8, intermediate_dim=16, num_heads=2, embedding_dim=8, num_multimask_outputs=3,
        iou_head_depth=2, iou_head_hidden_dim=8,
    )  # fmt: skip
    backbone = keras_hub.models.SAMBackbone(
        image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder
    )
    return keras_hub.models.SAMImageSegmenter(backbone=backbone)


class Sam:
    def __init__(self, model) -> None:
        import tensorflow as tf

        backbone = model.backbone
        self.side = backbone.image_encoder.input.shape[1]
        self.embed = tf.function(lambda images: backbone.image_encoder(images, training=False))

        @tf.function(reduce_retracing=True)
        def decode(embedding, points, labels, boxes):
            count = tf.shape(points)[0]
            prompts = backbone.prompt_encoder(points=points, labels=labels, boxes=boxes)
            embedding = tf.repeat(embedding, count, 0)
            return backbone.mask_decoder(image_embeddings=embedding, **prompts)

        self.decode = decode

    def look(self, image: np.ndarray) -> Look:
        """image: uint8 [H, W, 3]."""
        import tensorflow as tf

        height, width = image.shape[:2]
        scale = self.side / max(height, width)
        size = round(height * scale), round(width * scale)
        pixels = (tf.image.resize(image, size, antialias=True) - MEAN) / STD
        pixels = tf.image.pad_to_bounding_box(pixels, 0, 0, self.side, self.side)
        return Look(self, self.embed(pixels[None]), (height, width), size)


class Look:
    """One image that SAM has embedded."""

    def __init__(self, sam: Sam, embedding, image_size: tuple[int, int], size: tuple[int, int]) -> None:
        self.sam, self.embedding, self.image_size, self.size = sam, embedding, image_size, size
        self.scale = np.float32([size[1] / image_size[1], size[0] / image_size[0]])

    def at(
        self, boxes: np.ndarray | None = None, points: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """boxes: [N, 4] x1, y1, x2, y2, or points: [N, 2] x, y, in pixels of the image. Returns a mask for each, bool
        [N, H, W], and the overlap that SAM predicts, [N]."""
        masks, scores = [np.zeros((0, *self.image_size), bool)], [np.zeros(0, np.float32)]
        for logits, predicted in self._groups(boxes, points):
            best = np.argmax(predicted[:, 1:], 1) + 1 if boxes is None else np.zeros(len(predicted), int)
            rows = np.arange(len(predicted))
            masks.append(self._paste(logits[rows, best]) > 0)
            scores.append(predicted[rows, best])
        return np.concatenate(masks), np.concatenate(scores)

    def everything(self, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """What a grid of points finds, by falling predicted overlap."""
        height, width = self.image_size
        steps = (np.arange(grid, dtype=np.float32) + 0.5) / grid
        points = np.stack(np.meshgrid(steps * width, steps * height), -1).reshape(-1, 2)
        masks, scores = [np.zeros((0, *self.image_size), bool)], [np.zeros(0, np.float32)]
        for logits, predicted in self._groups(None, points):
            logits, predicted = logits[:, 1:].reshape(-1, *logits.shape[2:]), predicted[:, 1:].reshape(-1)
            with np.errstate(invalid="ignore"):
                inner, outer = ((logits > edge).sum((1, 2)) for edge in (OFFSET, -OFFSET))
                kept = (predicted >= PREDICTED) & (inner >= STABLE * outer) & (outer > 0)
            if kept.any():
                masks.append(self._paste(logits[kept]) > 0)
                scores.append(predicted[kept])
        masks, scores = np.concatenate(masks), np.concatenate(scores)
        kept = suppressed(masks, scores)
        return masks[kept], scores[kept]

    def _groups(self, boxes: np.ndarray | None, points: np.ndarray | None):
        """(logits [n, 4, h, w], predicted overlaps [n, 4]) of groups of prompts."""
        prompts = np.asarray(points if boxes is None else boxes, np.float32)
        for first in range(0, len(prompts), GROUP):
            group = prompts[first : first + GROUP]
            if boxes is None:  # a point without a box goes with one that is none
                spots = np.stack([group * self.scale, np.zeros_like(group)], 1)
                labels = np.tile(np.float32([1, -1]), (len(group), 1))
                corners = np.zeros((len(group), 0, 2, 2), np.float32)
            else:
                spots, labels = (
                    np.zeros((len(group), 0, 2), np.float32),
                    np.zeros((len(group), 0), np.float32),
                )
                corners = group.reshape(-1, 1, 2, 2) * self.scale
            found = self.sam.decode(self.embedding, spots, labels, corners)
            yield np.asarray(found["masks"], np.float32), np.asarray(found["iou_pred"], np.float32)

    def _paste(self, logits: np.ndarray) -> np.ndarray:
        """Logits [n, h, w] of the padded square to [n, H, W] of the image."""
        import tensorflow as tf

        side = self.sam.side
        large = tf.image.resize(logits[..., None], (side, side))[:, : self.size[0], : self.size[1]]
        return tf.image.resize(large, self.image_size)[..., 0].numpy()


def suppressed(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The numbers of the masks [N, H, W] that stay, by falling score, when boxes that overlap one before by OVERLAP go."""
    import tensorflow as tf

    filled = np.flatnonzero(masks.any((1, 2)))
    if not len(filled):
        return filled
    boxes = np.array([extent(mask) for mask in masks[filled]], np.float32)
    return filled[tf.image.non_max_suppression(boxes, scores[filled], len(filled), OVERLAP).numpy()]


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


if __name__ == "__main__":
    main()
