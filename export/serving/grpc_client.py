"""Ask a model server over gRPC what is in images: python grpc_client.py maskrcnn_nuclei cells.png --save answer.npz"""

import argparse
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def predict(
    files: list[bytes], model: str, server: str = "localhost:8500", label: str = "stable"
) -> dict[str, np.ndarray]:
    """All outputs of a model by name, for JPEG or PNG files. Raises grpc.RpcError with the server's code() and details()."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = model, label
    request.model_spec.signature_name = "encoded_images"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(files, tf.string))
    # -1: masks are larger than the 4 MB that a client takes by default
    with grpc.insecure_channel(server, options=[("grpc.max_receive_message_length", -1)]) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=120)
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--label", default="stable", help="of the model's version")
    parser.add_argument("--save", help="an .npz file for all outputs")
    options = parser.parse_args()
    outputs = predict(
        [path.read_bytes() for path in options.images], options.model, options.server, options.label
    )
    for name, array in sorted(outputs.items()):
        print(f"{name}: {array.dtype} {list(array.shape)}")
    for image, path in enumerate(options.images if "num_detections" in outputs else []):
        for n in range(outputs["num_detections"][image]):
            box = " ".join(f"{side:.1f}" for side in outputs["boxes"][image, n])
            print(
                f"{path.name}: class {outputs['classes'][image, n]}, score {outputs['scores'][image, n]:.3f}, box {box}"
            )
    if options.save:
        np.savez_compressed(options.save, **outputs)
