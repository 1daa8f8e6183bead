"""Detection data as TFRecord shards: few large files instead of many small ones, and the same batches from them.

A record is a `tf.train.Example` of one image with all its annotation, so the shards are complete by themselves. Beside
them, `index.npz` holds where each record begins and each image's size: what it takes to read them in any order.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from keras_seg.data.annotated_image import AnnotatedImage
from keras_seg.data.coco import open_source
from keras_seg.data.progress import track

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["RecordSource", "tfrecords", "write_tfrecords"]

INDEX = "index.npz"
LAYOUT = 1  # of the records and the index
FRAME = 12, 4  # bytes before and after a record: length and its checksum, the record's checksum
IMAGES_A_SHARD = 512


def write_tfrecords(
    annotations: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    shards: int | None = None,
    keep_empty: bool = False,
    min_box_side: float = 1.0,
    overwrite: bool = False,
) -> Path:
    """Write the folder `output` with shards `data-00000-of-00008.tfrecord` … and their index, and return it.

    annotations, images, keep_empty, min_box_side: as of `data.coco`; the image files go in as they are. shards: how
    many; None: one for every 512 images. overwrite: whether an existing folder is replaced.

    The folder appears when it is complete; what an interrupted run leaves has another name. Raises as `data.coco`, and
    FileExistsError.
    """
    import tensorflow as tf

    output = Path(output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output}: exists already; overwrite=True (--overwrite) replaces it")
    if shards is not None and shards < 1:
        raise ValueError(f"shards: must be positive, got {shards}")
    source = open_source(annotations, images, keep_empty=keep_empty, min_box_side=min_box_side, masks=False)
    number = len(source.sizes)
    shards = min(shards or -(-number // IMAGES_A_SHARD), max(number, 1))
    unfinished = output.with_name(f"{output.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        places = np.zeros((number, 3), np.int64)  # shard, first byte, bytes
        order = track([(i * shards // number, i) for i in range(number)], f"Writing {output.name}")
        writer: Any = None
        current, offset = -1, 0
        for shard, i in order:
            if shard != current:
                if writer:
                    writer.close()
                writer = tf.io.TFRecordWriter(str(unfinished / _shard_name(shard, shards)))
                current, offset = shard, 0
            record = _example(source.read(i), source.index.file_name(i)).SerializeToString()
            writer.write(record)
            places[i] = shard, offset + FRAME[0], len(record)
            offset += sum(FRAME) + len(record)
        if writer:
            writer.close()
        about = {
            "layout": LAYOUT,
            "shards": shards,
            "class_names": source.class_names,
            "keypoint_names": source.keypoint_names,
            "bitmaps": source.bitmaps,
            "polygons": source.polygons,
        }
        np.savez(
            unfinished / INDEX,
            about=json.dumps(about),
            places=places,
            sizes=source.sizes,
            category_ids=source.category_ids,
            image_ids=source.index.image_ids,
        )
        if output.exists():
            shutil.rmtree(output)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return output


def tfrecords(folder: str | Path, **options: Any) -> tf.data.Dataset:
    """The batches of a folder that `write_tfrecords` made: the same, one by one, that `data.coco` gives of the
    annotations it was made of, with the same options.

    options: those of `data.coco`, but for `keep_empty`, which was decided when the folder was written.

    Raises FileNotFoundError or ValueError: no such folder, no or a foreign index, shards missing or of another length;
    and as `data.coco`.
    """
    from keras_seg.data.detection_batches import detection_dataset

    return detection_dataset(RecordSource(folder), **options)


class RecordSource:
    """The images of a folder of shards, read one record at a time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.name = Path(folder), str(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; keras-seg convert tfrecord writes the folder")
        try:
            with np.load(path, allow_pickle=False) as index:
                about = json.loads(str(index["about"]))
                self.places, self.sizes = index["places"], index["sizes"]
                self.category_ids, self.image_ids = index["category_ids"], index["image_ids"]
            layout, shards = about["layout"], about["shards"]
            self.class_names, self.keypoint_names = (
                tuple(about["class_names"]),
                tuple(about["keypoint_names"]),
            )
            self.bitmaps, self.polygons = about["bitmaps"], about["polygons"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not an index of records, or damaged ({error})") from error
        if layout != LAYOUT:
            raise ValueError(
                f"{path}: written with layout {layout}, this version reads {LAYOUT}: convert again"
            )
        self.files = [self.folder / _shard_name(shard, shards) for shard in range(shards)]
        self._check_files()

    def _check_files(self) -> None:
        missing = [file.name for file in self.files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"{self.folder}: shards are missing: {', '.join(missing)}")
        for shard, file in enumerate(self.files):
            own = self.places[self.places[:, 0] == shard]
            expected = int((own[:, 1] + own[:, 2]).max(initial=-FRAME[1])) + FRAME[1]
            if file.stat().st_size != expected:
                raise ValueError(
                    f"{file}: {file.stat().st_size} bytes, the index says {expected}: cut off, or of another conversion"
                )

    def read(self, i: int) -> AnnotatedImage:
        """Image i. ValueError if the record is damaged."""
        import tensorflow as tf

        shard, first, length = self.places[i].tolist()
        file = self.files[shard]
        with file.open("rb") as stream:
            stream.seek(first - FRAME[0])
            framed = stream.read(length + FRAME[0])
        # of the frame the length alone is looked at: a damaged image does not decode, a damaged annotation does not
        # parse
        if len(framed) < FRAME[0] or struct.unpack("<Q", framed[:8])[0] != length:
            raise ValueError(
                f"{file}: no record at byte {first - FRAME[0]}: damaged, or of another conversion"
            )
        try:
            example = tf.train.Example.FromString(framed[FRAME[0] :])
            return _annotated(example.features.feature, f"{file}, image number {i}", len(self.keypoint_names))
        except Exception as error:  # protobuf's DecodeError is of a class that depends on its version
            raise ValueError(f"{file}: the record at byte {first - FRAME[0]} is damaged ({error})") from error


def _shard_name(shard: int, shards: int) -> str:
    return f"data-{shard:05d}-of-{shards:05d}.tfrecord"


def _example(annotated: AnnotatedImage, file_name: str) -> tf.train.Example:
    """Names as usual in TensorFlow's detection records where there are such; boxes are in pixels here."""
    import tensorflow as tf

    def ints(values: Sequence[int] | np.ndarray) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=np.asarray(values, np.int64).ravel()))

    def raw(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def doubles(values: np.ndarray) -> tf.train.Feature:
        return raw(np.ascontiguousarray(values, "<f8").tobytes())  # an Example's own floats are of 32 bits

    features = {
        "image/encoded": raw(Path(cast(Path, annotated.file)).read_bytes()),
        "image/filename": raw(file_name.encode("utf-8", "surrogatepass")),
        "image/id": ints([annotated.image_id]),
        "image/height": ints([annotated.size[0]]),
        "image/width": ints([annotated.size[1]]),
        "image/object/id": ints(annotated.ids),
        "image/object/class/label": ints(annotated.classes),
        "image/object/is_crowd": ints(annotated.crowd),
        "image/object/boxes": doubles(annotated.boxes),
        "image/object/polygon/points": doubles(annotated.polygon_points),
        "image/object/polygon/lengths": ints(annotated.polygon_lengths),
        "image/object/polygon/objects": ints(annotated.polygon_objects),
        "image/object/run_lengths": raw(annotated.run_lengths.tobytes()),
        "image/object/run_splits": ints(annotated.run_splits),
        "image/object/keypoints": doubles(annotated.keypoints),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def _annotated(features: Any, name: str, keypoints: int) -> AnnotatedImage:
    def ints(key: str, dtype: type = np.int64) -> np.ndarray:
        return np.array(features[key].int64_list.value, dtype)

    def raw(key: str) -> bytes:
        (value,) = features[key].bytes_list.value
        return value

    ids = ints("image/object/id")
    (image_id,), (height,), (width,) = ints("image/id"), ints("image/height"), ints("image/width")
    return AnnotatedImage(
        name=f"{name} ({raw('image/filename').decode('utf-8', 'surrogatepass')}, id {image_id})",
        file=raw("image/encoded"),
        image_id=int(image_id),
        size=(int(height), int(width)),
        boxes=np.frombuffer(raw("image/object/boxes"), "<f8").reshape(-1, 4),
        classes=ints("image/object/class/label", np.int32),
        crowd=ints("image/object/is_crowd") == 1,
        ids=ids,
        polygon_points=np.frombuffer(raw("image/object/polygon/points"), "<f8").reshape(-1, 2),
        polygon_lengths=ints("image/object/polygon/lengths"),
        polygon_objects=ints("image/object/polygon/objects"),
        run_lengths=np.frombuffer(raw("image/object/run_lengths"), np.uint8),
        run_splits=ints("image/object/run_splits"),
        keypoints=np.frombuffer(raw("image/object/keypoints"), "<f8").reshape(len(ids), keypoints, 3),
    )
