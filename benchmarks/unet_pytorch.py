"""The U-Net of unet_keras_seg.py in PyTorch, as a worker of unet.py; runs in an environment of its own."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from worker import serve

SETTINGS = ("plain", "channels_last", "compiled")


class UNet(nn.Module):
    """Ronneberger et al. 2015 without padding; modules are named as the layers of keras_seg.models.unet."""

    def __init__(self, base_channels: int, depth: int, classes: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.depth, self.dropout = depth, dropout
        channels = [base_channels * 2**level for level in range(depth + 1)]

        def block(name: str, incoming: int, outgoing: int) -> None:
            self.add_module(f"{name}_conv1", nn.Conv2d(incoming, outgoing, 3))
            self.add_module(f"{name}_conv2", nn.Conv2d(outgoing, outgoing, 3))

        for level in range(depth):
            block(f"enc{level + 1}", channels[level - 1] if level else 1, channels[level])
        block("bottom", channels[-2], channels[-1])
        for level in range(depth, 0, -1):
            self.add_module(f"dec{level}_up", nn.ConvTranspose2d(channels[level], channels[level - 1], 2, 2))
            block(f"dec{level}", channels[level], channels[level - 1])
        self.add_module("logits", nn.Conv2d(base_channels, classes, 1))

    def block(self, name: str, x: torch.Tensor, drop: bool = False) -> torch.Tensor:
        for index in (1, 2):
            x = functional.relu(self.get_submodule(f"{name}_conv{index}")(x), inplace=True)
        return functional.dropout(x, self.dropout, self.training) if drop else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 1, H, W], 0-255, to logits [B, classes, h, w]."""
        x, skips = x / 255, []
        for level in range(1, self.depth + 1):
            x = self.block(f"enc{level}", x, drop=level == self.depth)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.block("bottom", x, drop=True)
        for level in range(self.depth, 0, -1):
            x = self.get_submodule(f"dec{level}_up")(x)
            crop = (skips[level - 1].shape[-1] - x.shape[-1]) // 2
            x = torch.cat([skips[level - 1][:, :, crop:-crop, crop:-crop], x], 1)
            x = self.block(f"dec{level}", x)
        return self.logits(x)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """weights: "layer/kernel" and "layer/bias" in Keras's layout."""
        names = {name.split("/")[0] for name in weights}
        if names != {name for name, _ in self.named_children()}:
            raise ValueError("the weights name other layers than this network has")
        with torch.no_grad():
            for name, module in self.named_children():
                # [kh, kw, in, out] to [out, in, kh, kw]; transposed convolutions have in and out swapped in both
                module.weight.copy_(torch.from_numpy(weights[f"{name}/kernel"]).permute(3, 2, 0, 1))
                module.bias.copy_(torch.from_numpy(weights[f"{name}/bias"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=("inference", "training"))
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--inputs", help=".npz with weights, image, label and weight", required=True)
    parser.add_argument("--outputs", help=".npz to write what is compared", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--matrix", help="side of the matrices to multiply", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    inputs = np.load(args.inputs)  # read on access: only what is used takes memory
    model = UNet(int(inputs["base_channels"]), int(inputs["depth"]))
    model.load(
        {name.removeprefix("weights/"): inputs[name] for name in inputs if name.startswith("weights/")}
    )
    image = torch.from_numpy(inputs["image"]).permute(0, 3, 1, 2).contiguous()
    label, weight = torch.from_numpy(inputs["label"]).long(), torch.from_numpy(inputs["weight"])
    if args.setting != "plain":
        model, image = (
            model.to(memory_format=torch.channels_last),
            image.to(memory_format=torch.channels_last),
        )
    forward = torch.compile(model) if args.setting == "compiled" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=float(inputs["learning_rate"]), momentum=0.99)

    def predict() -> torch.Tensor:
        with torch.inference_mode():
            return forward(image).softmax(1)

    def loss_and_gradients() -> float:
        optimizer.zero_grad()
        loss = (functional.cross_entropy(forward(image), label, reduction="none") * weight).mean()
        loss.backward()
        return float(loss.detach())

    def train() -> float:
        loss = loss_and_gradients()
        optimizer.step()
        return loss

    def check() -> None:
        """Writes the probabilities, or the loss and the gradients' norms, both without drop-out."""
        model.eval()
        if args.task == "inference":
            np.savez(args.outputs, probabilities=predict().permute(0, 2, 3, 1).numpy())
            return
        loss = loss_and_gradients()
        norms = {
            f"{name}/kernel": float(module.weight.grad.norm()) for name, module in model.named_children()
        }
        model.train()
        np.savez(args.outputs, loss=loss, **norms)

    left, right = torch.randn(args.matrix, args.matrix), torch.randn(args.matrix, args.matrix)
    run = (lambda: predict() is None) if args.task == "inference" else train
    serve({
        "version": lambda: f"PyTorch {torch.__version__}",
        "check": check,
        "run": run,
        "matmul": lambda: (left @ right) is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
