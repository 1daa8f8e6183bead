"""What a TensorFlow Lite file says of itself, where phone applications look for it.

The format is TensorFlow Lite Metadata, schema 1.0.1: a flatbuffer "TFLITE_METADATA" within the model's, and a zip archive
after the model with the files it names: labels.txt, and keras_seg.json (`export.metadata`). Places of fields in their
tables are as in metadata_schema.fbs.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from keras_seg.export.metadata import FILE

NAME, IDENTIFIER, PARSER = "TFLITE_METADATA", b"M001", "1.0.0"
LABELS = "labels.txt"
RGB, GREYSCALE = 1, 2  # ColorSpaceType
AXIS_LABELS, VALUE_LABELS, DESCRIPTIONS = 2, 3, 1  # AssociatedFileType
IMAGE_PROPERTIES, BOX_PROPERTIES, NORMALIZATION = (
    2,
    3,
    1,
)  # members of the unions ContentProperties and ProcessUnitOptions
BOUNDARIES, PIXEL = 1, 1  # BoundingBoxType, CoordinateType
TABLES_SIZE = 1 << 16  # bytes; the flatbuffer grows beyond it


def embed(content: bytes, about: Mapping[str, Any], labels: Sequence[str]) -> bytes:
    """A TensorFlow Lite file with metadata.

    about: what keras_seg.json holds; of it "name", "summary", "keras_seg", "licence", "task", "input" and "outputs" go into
    the flatbuffer too. labels: names of the classes.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(content))
    graph = model.subgraphs[0]
    # of the one signature: tensors in the order in which the file has them
    signature = model.signatureDefs[0]
    names = {entry.tensorIndex: entry.name.decode() for entry in (*signature.inputs, *signature.outputs)}
    packed = _metadata(about, [names[i] for i in graph.inputs], [names[i] for i in graph.outputs])
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(packed, np.uint8)
    entry.name, entry.buffer = NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return _packed(model) + _archive({LABELS: "\n".join(labels) + "\n", FILE: json.dumps(about, indent=1)})


def read(content: bytes) -> dict[str, Any]:
    """keras_seg.json of a TensorFlow Lite file. ValueError: it has none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return json.loads(archive.read(FILE))
    except (zipfile.BadZipFile, KeyError):
        raise ValueError(f"has no {FILE} inside, so keras_seg.export.tflite did not write it") from None


def _archive(files: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # stored, which the smallest readers can read
        for name, text in files.items():
            # a fixed date, so that the same model gives the same file
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return content.getvalue()


def _packed(model: Any) -> bytes:
    """The model as a flatbuffer, its constants at multiples of 16 bytes, which the generated code does not see to."""
    for buffer in model.buffers:
        buffer.Pack = lambda builder, data=buffer.data: _pack_buffer(builder, data)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _pack_buffer(builder: flatbuffers.Builder, data: Any) -> int:
    from tensorflow.lite.python import schema_py_generated as schema

    vector = None
    if data is not None:
        array = np.asarray(data, np.uint8)
        builder.StartVector(1, len(array), 16)
        builder.head = builder.Head() - len(array)
        builder.Bytes[builder.Head() : builder.Head() + len(array)] = array.tobytes()
        vector = builder.EndVector()
    schema.BufferStart(builder)
    if vector is not None:
        schema.BufferAddData(builder, vector)
    return schema.BufferEnd(builder)


def _metadata(about: Mapping[str, Any], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The flatbuffer of root type ModelMetadata."""
    builder = flatbuffers.Builder(TABLES_SIZE)
    text = builder.CreateString

    def file(name: str, description: str, kind: int) -> int:
        return _table(builder, text(name), text(description), ("int8", kind))

    def image() -> int:
        shape = about["input"]["shape"]
        size = _table(builder, ("uint32", shape[2] or 0), ("uint32", shape[1] or 0))
        colours = {1: GREYSCALE, 3: RGB}.get(shape[3], 0)
        properties = _table(builder, ("int8", colours), size)
        content = _table(builder, ("uint8", IMAGE_PROPERTIES), properties)
        # pixels go in as they are
        options = _table(builder, _floats(builder, [0.0]), _floats(builder, [1.0]))
        unit = _table(builder, ("uint8", NORMALIZATION), options)
        stats = _table(builder, _floats(builder, [255.0]), _floats(builder, [0.0]))
        description = text(about["input"]["description"])
        return _table(builder, text("images"), description, None, content, _vector(builder, [unit]), stats)

    def output(name: str) -> int:
        files, content = None, None
        if name in ("classes", "probabilities"):
            kind = VALUE_LABELS if name == "classes" else AXIS_LABELS
            files = _vector(builder, [file(LABELS, "Names of the classes.", kind)])
        if name == "boxes":
            properties = _table(builder, None, ("int8", BOUNDARIES), ("int8", PIXEL))
            content = _table(builder, ("uint8", BOX_PROPERTIES), properties)
        return _table(
            builder, text(name), text(about["outputs"][name]["description"]), None, content, None, None, files
        )

    graph = _table(
        builder, None, None, _vector(builder, [image() for _ in inputs]), _vector(builder, [output(n) for n in outputs])
    )  # fmt: skip
    more = file(FILE, "All that keras_seg says of the model, as JSON.", DESCRIPTIONS)
    root = _table(
        builder, text(about["name"]), text(about["summary"]), text(about["keras_seg"]), _vector(builder, [graph]),
        text("keras_seg"), text(about["licence"] or "not stated"), _vector(builder, [more]), text(PARSER),
    )  # fmt: skip
    builder.Finish(root, IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: flatbuffers.Builder, *fields: int | tuple[str, int] | None) -> int:
    """A table of these fields in their order: offsets, or (type, number); None: absent."""
    builder.StartObject(len(fields))
    put: dict[str, Callable[..., None]] = {
        "int8": builder.PrependInt8Slot, "uint8": builder.PrependUint8Slot, "uint32": builder.PrependUint32Slot,
    }  # fmt: skip
    for slot, field in enumerate(fields):
        if isinstance(field, tuple):
            put[field[0]](slot, field[1], 0)
        elif field is not None:
            builder.PrependUOffsetTRelativeSlot(slot, field, 0)
    return builder.EndObject()


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    return builder.CreateNumpyVector(np.array(values, np.float32))
