"""Ask a model server over REST what is in images: python rest_client.py maskrcnn_nuclei cells.png --save answer.json

Python's standard library is enough. gRPC is the faster way: JSON spells every number of every mask.
"""

import argparse
import base64
import json
import urllib.error
import urllib.request
from pathlib import Path


def predict(
    files: list[bytes], model: str, server: str = "http://localhost:8501", label: str = "stable"
) -> list[dict]:
    """The outputs by name of each JPEG or PNG file. Raises RuntimeError with the server's message."""
    rows = [{"b64": base64.b64encode(file).decode()} for file in files]
    body = json.dumps({"signature_name": "encoded_images", "instances": rows}).encode()
    url = f"{server}/v1/models/{model}/labels/{label}:predict"
    try:
        with urllib.request.urlopen(url, body, timeout=120) as response:
            rows = json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code}: {error.read().decode()}") from error
    # a model with one output, as a U-Net, answers without its name
    return [row if isinstance(row, dict) else {"probabilities": row} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--server", default="http://localhost:8501")
    parser.add_argument("--label", default="stable", help="of the model's version")
    parser.add_argument("--save", type=Path, help="a .json file for all outputs")
    options = parser.parse_args()
    answers = predict(
        [path.read_bytes() for path in options.images], options.model, options.server, options.label
    )
    for path, answer in zip(options.images, answers, strict=True):
        print(f"{path.name}: {', '.join(sorted(answer))}")
        for n in range(answer.get("num_detections", 0)):
            box = " ".join(f"{side:.1f}" for side in answer["boxes"][n])
            print(f"{path.name}: class {answer['classes'][n]}, score {answer['scores'][n]:.3f}, box {box}")
    if options.save:
        options.save.write_text(json.dumps(answers))
