"""Ask a model server over gRPC what is in an image: python grpc_client.py maskrcnn_nuclei cells.png --save answer.npz"""

import argparse
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def predict(files: list[bytes], model: str, server: str = "localhost:8500") -> dict[str, np.ndarray]:
    """A model's outputs by name, for JPEG or PNG files. Raises grpc.RpcError, whose code() and details() say what is wrong."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = model, "stable"
    request.model_spec.signature_name = "encoded_images"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(files, tf.string))
    # -1: answers with masks are larger than the 4 MB that a client takes by default
    with grpc.insecure_channel(server, options=[("grpc.max_receive_message_length", -1)]) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=120)
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--save", default="answer.npz")
    options = parser.parse_args()
    outputs = predict([options.image.read_bytes()], options.model, options.server)
    np.savez_compressed(options.save, **outputs)
    for n in range(outputs.get("num_detections", [0])[0]):
        print(
            f"class {outputs['classes'][0, n]}, score {outputs['scores'][0, n]:.3f}, box",
            *outputs["boxes"][0, n].round(1),
        )
