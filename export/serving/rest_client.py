"""Ask a model server over REST what is in an image: python rest_client.py maskrcnn_nuclei cells.png --save answer.json"""

import argparse
import base64
import json
import urllib.error
import urllib.request
from pathlib import Path


def predict(files: list[bytes], model: str, server: str = "http://localhost:8501") -> dict:
    """A model's outputs by name, for JPEG or PNG files, as nested lists. Raises RuntimeError with the server's message."""
    images = [{"b64": base64.b64encode(file).decode()} for file in files]
    body = json.dumps({"signature_name": "encoded_images", "inputs": {"image_bytes": images}}).encode()
    url = f"{server}/v1/models/{model}/labels/stable:predict"
    try:
        with urllib.request.urlopen(url, body, timeout=120) as response:
            outputs = json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code}: {error.read().decode()}") from error
    return (
        outputs if isinstance(outputs, dict) else {"probabilities": outputs}
    )  # an only output comes without its name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--server", default="http://localhost:8501")
    parser.add_argument("--save", default="answer.json", type=Path)
    options = parser.parse_args()
    outputs = predict([options.image.read_bytes()], options.model, options.server)
    options.save.write_text(json.dumps(outputs))
    for n in range(outputs.get("num_detections", [0])[0]):
        print(
            f"class {outputs['classes'][0][n]}, score {outputs['scores'][0][n]:.3f}, box",
            *outputs["boxes"][0][n],
        )
