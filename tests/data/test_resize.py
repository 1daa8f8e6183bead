"""Resizing for detectors, on Detectron2's and torchvision's pixels."""

from __future__ import annotations

import numpy as np
import pytest

from keras_seg.data.resize import resize, shortest_edge_size


@pytest.mark.parametrize(("short", "longest"), [(64, 200), (80, 100), (20, 1000), (37, 1333), (53, 60)])
def test_pixels_are_detectron2s(shared, short, longest):
    golden = np.load(shared / "golden/ops/resize.npz")
    image = golden["image_bgr"]
    size = shortest_edge_size(*image.shape[:2], short, longest)
    np.testing.assert_array_equal(resize(image, size), golden[f"short{short}_max{longest}"])


@pytest.mark.parametrize(("short", "longest"), [(800, 1333), (320, 533)])
def test_sizes_are_detectron2s(shared, short, longest):
    golden = np.load(shared / "golden/ops/resize.npz")
    found = [shortest_edge_size(h, w, short, longest) for h, w in golden["table.input_hw"].tolist()]
    assert found == [tuple(size) for size in golden[f"table.short{short}_max{longest}.output_hw"].tolist()]


def test_sizes_at_half_a_pixel_and_of_thin_images():
    # 86 x 49 to 1333 x 759.5, which Detectron2's float64 arithmetic rounds up
    assert shortest_edge_size(86, 49, 1024, 1333) == (1333, 760)
    # 800 x 4,000,000, then 0.27 x 1333: a pixel is the least
    for convention in ("detectron2", "torchvision"):
        assert shortest_edge_size(1, 5000, 800, 1333, convention) == (1, 1333)


@pytest.mark.parametrize(("short", "longest"), [(64, 200), (20, 1000), (53, 60)])
def test_pixels_are_torchvisions(shared, short, longest):
    golden = np.load(shared / "golden/ops/torchvision_conventions.npz")
    image = golden["resize.image_rgb"]
    size = shortest_edge_size(*image.shape[:2], short, longest, "torchvision")
    assert list(size) == golden[f"resize.min{short}_max{longest}.image_size"].tolist()
    expected = golden[f"resize.min{short}_max{longest}.output"][0].transpose(1, 2, 0)[: size[0], : size[1]]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    found = (resize(image, size, "torchvision") / 255 - mean) / std
    np.testing.assert_allclose(found, expected, atol=2e-6)
