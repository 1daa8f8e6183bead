"""`segment`: tiles join to the whole image's prediction, whatever the image; bad input says what is wrong."""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_seg import overlap_tile
from keras_seg.models.unet import TileCheck, unet
from keras_seg.overlap_tile import SYMMETRIES
from keras_seg.segment import instances, segment, segment_tiles

# Tiled and whole inference add the same products in another order; the outputs are probabilities.
TOLERANCE = 1e-5


@functools.cache
def network(padding: str = "valid", depth: int = 2, channels: int = 1, normalization: str | None = None):
    """A small U-Net whose biases and statistics are away from their neutral start."""
    model = unet(channels, 3, depth=depth, base_channels=2, padding=padding, normalization=normalization)
    random = np.random.default_rng(depth)
    for variable in model.weights:
        if "kernel" not in variable.path and "seed" not in variable.path:
            variable.assign(random.uniform(0.1, 0.6, variable.shape))
    return model


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def views(model, image: np.ndarray, count: int) -> list[np.ndarray]:
    """One pass over the whole mirrored image ([H, W, C], 0-255) for each symmetry, by NumPy's own padding."""
    border = model.margin or model.context
    height, width = image.shape[:2]
    sides = [model.legal_sizes(length + 2 * border)[1] for length in (height, width)]
    spread = [(border, side - length - border) for side, length in zip(sides, (height, width), strict=True)]
    padded = np.pad(image.astype(np.float32), (*spread, (0, 0)), mode="reflect")
    crop = border - model.margin
    outputs = []
    for k in range(count):
        turned = np.rot90(np.fliplr(padded) if k >= 4 else padded, k % 4)
        output = np.rot90(model(turned[None].copy())[0].numpy(), -(k % 4))
        output = np.fliplr(output) if k >= 4 else output
        outputs.append(output[crop : crop + height, crop : crop + width])
    return outputs


def whole(model, image: np.ndarray, count: int = 1) -> np.ndarray:
    return np.mean(views(model, image, count), axis=0)


# -- tiles are the whole -----------------------------------------------------------------------------------

NETWORKS = [("valid", 1), ("valid", 2), ("valid", 3), ("same", 1), ("same", 2), ("same", 3)]


def legal_tile(model, steps: int) -> int:
    """The `steps`-th smallest legal tile."""
    if model.margin == 0:
        return steps * 2**model.depth
    return model.output_size(model.legal_sizes(2 * model.margin + steps * 2**model.depth)[1])


@pytest.mark.parametrize(("padding", "depth"), NETWORKS)
@settings(max_examples=5, deadline=None)
@given(height=st.integers(2, 70), width=st.integers(1, 70), steps=st.integers(1, 4), batch=st.integers(1, 3))
def test_tiles_join_to_the_whole(padding, depth, height, width, steps, batch):
    model, image = network(padding, depth), picture(height, width, 1)
    tiled = segment(model, image, tile=legal_tile(model, steps), batch_size=batch)
    assert tiled.shape == (height, width, 3) and tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole(model, image), atol=TOLERANCE)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_tiles_join_at_the_papers_depth(padding):
    model, image = network(padding, 4), picture(90, 121, 1)
    expected = whole(model, image)
    for steps in (5, 13):
        np.testing.assert_allclose(
            segment(model, image, tile=legal_tile(model, steps)), expected, atol=TOLERANCE
        )


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_tiles_join_where_wide_convolutions_are_computed_differently(padding):
    model = unet(depth=2, base_channels=64, padding=padding)  # 256 channels at the bottom
    image = picture(60, 50, 1)
    tiled = segment(model, image, tile=legal_tile(model, 4))
    np.testing.assert_allclose(tiled, whole(model, image), atol=TOLERANCE, rtol=0)


def test_batch_normalisation_keeps_the_identity():
    model, image = network("same", 2, normalization="batch"), picture(50, 41, 1)
    np.testing.assert_allclose(segment(model, image, tile=8), whole(model, image), atol=TOLERANCE)


def test_group_normalisation_warns_when_the_tile_matters():
    model = network("same", 2, normalization="group")
    with pytest.warns(UserWarning, match="group normalisation .* at least 50 pixels"):
        segment(model, picture(50, 41), tile=8)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_tiles_cover_each_pixel_once_in_one_size(padding):
    model, image = network(padding, 3), picture(70, 45)
    count = np.zeros(image.shape, int)
    joined = np.empty((*image.shape, 3), np.float32)
    for y, x, probabilities in segment_tiles(model, image, tile=legal_tile(model, 2)):
        height, width = probabilities.shape[:2]
        count[y : y + height, x : x + width] += 1
        joined[y : y + height, x : x + width] = probabilities
    assert (count == 1).all()
    np.testing.assert_array_equal(joined, segment(model, image, tile=legal_tile(model, 2)))


def test_the_network_is_traced_once(monkeypatch):
    traces = []
    call = TileCheck.call

    def counting(self, images):
        traces.append(images.shape)
        return call(self, images)

    monkeypatch.setattr(TileCheck, "call", counting)
    model = unet(depth=1, base_channels=2, padding="same")
    segment(model, picture(20, 21), tile=16, rotations=7, batch_size=3)
    once = len(traces)
    assert once > 0
    for side in (33, 64):
        segment(model, picture(side, side + 1), tile=16, rotations=7, batch_size=3)
    assert len(traces) == once


def test_a_model_is_not_kept_alive():
    model = unet(depth=1, base_channels=2, padding="same")
    segment(model, picture(8, 8))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_new_weights_are_used():
    model, image = unet(depth=1, base_channels=2, padding="same"), picture(16, 16)
    before = segment(model, image)
    model.get_layer("logits").bias.assign([1.0, -1.0])
    assert np.abs(segment(model, image) - before).max() > 0.1


def test_tile_defaults_to_the_models_own_then_to_what_memory_allows(monkeypatch):
    """Maps of 128 channels in 256 MB are 724 pixels a side, in 512 MB 1024, of which 8 at either end are context."""
    wide, gigabyte = unet(depth=1, base_channels=128, padding="same"), 2**30
    for memory, side in ((4 * gigabyte, 512), (8 * gigabyte, 708), (64 * gigabyte, 1008)):
        pages = {"SC_PHYS_PAGES": memory // 4096, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr("os.sysconf", pages.__getitem__)
        assert overlap_tile.legal_tile(wide, None) == side
    assert overlap_tile.legal_tile(network("same", 1), None) == 2048
    monkeypatch.setattr("os.sysconf_names", {})  # not on every system
    assert overlap_tile.legal_tile(wide, None) == 708
    image = picture(600, 3)
    assert [y for y, *_ in segment_tiles(network("same", 1), image)] == [0]
    model = unet(depth=1, base_channels=2, padding="same", tile=200)
    assert sorted({y for y, *_ in segment_tiles(model, image)}) == [0, 200, 400]


# -- rotations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "depth"), [("valid", 3), ("same", 2)])
@settings(max_examples=3, deadline=None)
@given(
    height=st.integers(2, 60), width=st.integers(1, 60), steps=st.integers(1, 3), rotations=st.integers(1, 8)
)
def test_averaged_rotations_do_not_depend_on_the_tile(padding, depth, height, width, steps, rotations):
    model, image = network(padding, depth), picture(height, width, 1)
    tiled = segment(model, image, tile=legal_tile(model, steps), rotations=rotations)
    np.testing.assert_allclose(tiled, whole(model, image, rotations), atol=TOLERANCE)


def test_seven_are_all_but_the_mirror_image_turned_by_270():
    assert SYMMETRIES[7] == "mirrored, turned by 270°"
    model, image = network("same", 2), picture(20, 20, 1)
    eight = views(model, image, 8)
    seven = segment(model, image, rotations=7)
    np.testing.assert_allclose(seven, sum(eight[:7]) / 7, atol=TOLERANCE)
    np.testing.assert_allclose(segment(model, image, rotations=8), sum(eight) / 8, atol=TOLERANCE)
    assert np.abs(seven - eight[0]).max() > 1e-3


def test_all_eight_make_the_result_symmetric():
    # sides that are multiples of 2**depth: the pooling grid is the same counted from either end
    model, image = network("valid", 2), picture(36, 44)
    expected = segment(model, image, rotations=8, tile=16)
    np.testing.assert_allclose(
        segment(model, np.rot90(image), rotations=8, tile=64), np.rot90(expected), atol=TOLERANCE
    )
    np.testing.assert_allclose(
        segment(model, image[::-1], rotations=8, tile=8), expected[::-1], atol=TOLERANCE
    )


def test_rotations_default_to_the_models_own():
    model, image = unet(depth=1, base_channels=2, padding="same", rotations=7), picture(16, 20)
    np.testing.assert_array_equal(segment(model, image), segment(model, image, rotations=7))
    assert np.abs(segment(model, image) - segment(model, image, rotations=1)).max() > 1e-4


# -- kinds of image ----------------------------------------------------------------------------------------


def test_stacks_are_their_slices():
    model, stack = network(), picture(3, 20, 30)
    expected = np.stack([segment(model, image) for image in stack])
    for given_stack in (stack, stack[..., None]):
        np.testing.assert_allclose(
            segment(model, given_stack, tile=8, batch_size=4), expected, atol=TOLERANCE
        )
    assert segment(model, stack[:1, ..., None]).shape == (1, 20, 30, 3)


def test_axes_of_an_rgb_model():
    model = network(channels=3)
    grey, rgb = picture(20, 30), picture(20, 30, 3)
    assert segment(model, rgb).shape == (20, 30, 3)
    assert segment(model, np.stack([rgb, rgb])).shape == (2, 20, 30, 3)
    repeated = segment(model, np.repeat(grey[..., None], 3, axis=-1))
    for one in (grey, grey[..., None]):
        np.testing.assert_allclose(segment(model, one), repeated, atol=TOLERANCE)
    np.testing.assert_allclose(segment(model, np.stack([grey, grey]))[1], repeated, atol=TOLERANCE)


def test_rgb_becomes_luma_for_a_grey_model():
    rgb = picture(20, 30, 3)
    luma = (rgb @ [0.299, 0.587, 0.114]).astype(np.float32)
    np.testing.assert_allclose(segment(network(), rgb), segment(network(), luma), atol=TOLERANCE)


def test_depths_of_the_same_image_agree():
    image = picture(20, 30)
    expected = segment(network(), image)
    sixteen = image.astype(np.uint16) * 257  # 65535 / 255
    np.testing.assert_allclose(segment(network(), sixteen), expected, atol=TOLERANCE)
    np.testing.assert_allclose(segment(network(), image.astype(np.float32)), expected, atol=TOLERANCE)
    np.testing.assert_allclose(segment(network(), image.astype(np.float64)), expected, atol=TOLERANCE)


def test_value_range_holds_for_the_whole_image():
    image = picture(40, 40).astype(np.uint16) // 4 + 1000
    image[:20] = 1000  # tiles that are constant in an image that is not
    scaled = (image.astype(np.float32) - 1000) * (255 / 100)
    expected = segment(network(), scaled, tile=8)
    np.testing.assert_allclose(
        segment(network(), image, value_range=(1000, 1100), tile=8), expected, atol=TOLERANCE
    )


def test_files_and_pil_images(tmp_path):
    image, stack = picture(20, 30), picture(2, 20, 30)
    expected = segment(network(), image)
    Image.fromarray(image).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "one.tif", image)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    for one in (tmp_path / "grey.png", str(tmp_path / "one.tif"), Image.fromarray(image)):
        np.testing.assert_array_equal(segment(network(), one), expected)
    np.testing.assert_array_equal(segment(network(), tmp_path / "stack.tif"), segment(network(), stack))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pil_modes(mode):
    grey = Image.fromarray(picture(20, 30))
    image = Image.fromarray(picture(20, 30).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    reference = {"1": grey.convert("1").convert("L"), "RGBA": grey.convert("RGB")}.get(mode, grey)
    # palettes and CMYK round the colours
    tolerance = 0.2 if mode in ("P", "CMYK") else TOLERANCE
    np.testing.assert_allclose(segment(network(), image), segment(network(), reference), atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 3), (1, 200)])
def test_images_smaller_than_any_tile(shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    for padding in ("valid", "same"):
        model = network(padding, 4)
        np.testing.assert_allclose(segment(model, image), whole(model, image[..., None]), atol=TOLERANCE)


# -- where the result goes ---------------------------------------------------------------------------------


def test_result_in_a_given_array_or_memmap(tmp_path):
    model, stack = network(), picture(2, 20, 30)
    expected = segment(model, stack)
    out = np.zeros(expected.shape, np.float32)
    assert segment(model, stack, out=out) is out
    np.testing.assert_array_equal(out, expected)
    mapped = np.memmap(tmp_path / "raw", np.float32, "w+", shape=expected.shape)
    segment(model, stack, out=mapped)
    np.testing.assert_array_equal(mapped, expected)


def test_result_in_a_file(tmp_path):
    model, image = network(), picture(20, 30)
    result = segment(model, image, out=tmp_path / "result.npy")
    assert isinstance(result, np.memmap)
    np.testing.assert_array_equal(result, segment(model, image))
    np.testing.assert_array_equal(np.load(tmp_path / "result.npy"), result)
    assert [path.name for path in tmp_path.iterdir()] == ["result.npy"]


def test_an_interrupted_run_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "result.npy"
    former = np.array(segment(network(), picture(20, 30), out=path))

    def interrupted(tiles):
        yield 0, 0, 0, np.zeros((8, 8, 3), np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_seg.overlap_tile.Tiles.predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segment(network(), picture(20, 30, seed=1), out=path)
    np.testing.assert_array_equal(np.load(path), former)
    assert [path.name for path in tmp_path.iterdir()] == ["result.npy"]


def test_memory_is_bounded_for_a_huge_image(tmp_path, monkeypatch):
    """10,000 x 10,000 pixels in less than 40 MB; the input alone would be 400 MB as float32."""
    image = np.memmap(tmp_path / "huge.raw", np.uint8, "w+", shape=(10_000, 10_000))
    image[::997, ::991] = 255
    model = network("same", 1)
    # what the network computes does not matter here, only what is kept
    monkeypatch.setattr(
        "keras_seg.overlap_tile._compiled",
        lambda model, precision: lambda tiles: np.repeat(tiles, 3, axis=-1),
    )
    segment(model, picture(16, 16))  # imports
    tracemalloc.start()
    tiles = list(itertools.islice(((y, x) for y, x, _ in segment_tiles(model, image, tile=512)), 30))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tiles[-1] == (500, 4500)  # 20 x 20 tiles of 500 pixels
    assert peak < 40e6


def test_progress_is_drawn_when_asked_for_and_not_into_a_pipe(capsys):
    segment(network("same", 1), picture(64, 64), tile=8)
    assert capsys.readouterr() == ("", "")
    segment(network("same", 1), picture(64, 64), tile=8, progress=True)
    shown = capsys.readouterr()
    assert "segmenting" in shown.err and shown.out == ""


def test_progress_is_drawn_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    segment(network("same", 1), picture(64, 64), tile=8)
    assert "segmenting" in capsys.readouterr().err
    segment(network("same", 1), picture(64, 64))
    assert capsys.readouterr().err == ""


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "depth", "tile", "nearest"),
    [
        ("same", 4, 100, "96 or 112"),
        ("same", 4, 0, "16"),
        ("same", 4, -5, "16"),
        ("valid", 4, 384, "372 or 388"),
        ("valid", 4, 4, "20"),
        ("valid", 4, 16.5, "20"),
        ("valid", 2, 30, "28 or 32"),
    ],
)
def test_illegal_tiles_name_the_nearest_legal_ones(padding, depth, tile, nearest):
    with pytest.raises(ValueError, match=f"tile={tile} is no legal side .* nearest legal: {nearest}$"):
        segment(network(padding, depth), picture(20, 20), tile=tile)


BAD = {
    "constant": (np.full((20, 20), 7, np.uint8), "image: the image is constant"),
    "one pixel": (np.zeros((1, 1), np.uint8), "image: the image is constant"),
    "nan": (np.where(np.eye(20) > 0, np.nan, 9.0), "image: 20 of 400 pixel values are NaN or infinite"),
    "infinite": (np.where(np.eye(20) > 0, np.inf, 9.0), "image: 20 of 400 pixel values are NaN or infinite"),
    "range": (picture(20, 20) * 2.0, "image: float values from 0 to .* outside 0-255"),
    "int": (picture(20, 20).astype(np.int64), "image: int64 pixels"),
    "bool": (picture(20, 20) > 9, "image: bool pixels"),
    "text": (np.array([["a", "b"]]), "image: <U1 pixels"),
    "alpha": (picture(20, 20, 4), r"4 channels, but the model takes 1; without alpha it is image\[..., :3\]"),
    "channels": (picture(2, 20, 20, 5), "image: 5 channels, but the model takes 1$"),
    "axes": (picture(20), r"image: shape \[20\]; give \[H, W\]"),
    "empty": (picture(0, 20), r"image: the image is empty, its shape is \[1, 0, 20, 1\]"),
    "slice": (
        np.stack([picture(20, 20), np.zeros((20, 20), np.uint8)]),
        "image, slice 1: the image is constant",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images(case):
    image, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        segment(network(), image)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.tif"):
        segment(network(), tmp_path / "nowhere.tif")
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(ValueError, match="note.png"):
        segment(network(), tmp_path / "note.png")
    Image.new("L", (20, 20)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="black.png: the image is constant"):
        segment(network(), tmp_path / "black.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotations": 9}, "rotations must be an integer from 1 to 8, got 9"),
        ({"rotations": 0}, "rotations must be an integer from 1 to 8, got 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"value_range": (9, 3)}, r"value_range=\(9, 3\) must be"),
        ({"out": "result.tif"}, "must end in .npy"),
        ({"out": "no/such/folder/result.npy"}, "lie in an existing folder"),
        (
            {"out": np.zeros((20, 20, 2), np.float32)},
            r"float32 array \[20, 20, 3\], got float32 \[20, 20, 2\]",
        ),
        ({"out": np.zeros((20, 20, 3))}, r"float32 array \[20, 20, 3\], got float64 \[20, 20, 3\]"),
        ({"out": 5}, "must be a path or a writeable float32 array .*, got int"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        segment(network(), picture(20, 20), **options)


def test_too_little_disk_space(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="result.npy: the result takes .* are free"):
        segment(network(), picture(20, 20), out=tmp_path / "result.npy")


def test_other_models_and_stacks_for_tiles_are_refused():
    with pytest.raises(TypeError, match="takes a U-Net of keras_seg.models.unet, got function"):
        segment(segment, picture(20, 20))
    with pytest.raises(ValueError, match="a stack of 2 slices; segment_tiles takes one image"):
        segment_tiles(network(), picture(2, 20, 20))


def test_a_diverged_model_is_no_result():
    model = unet(depth=1, base_channels=2, padding="same")
    model.get_layer("logits").bias.assign([np.nan, 0])
    with pytest.raises(ValueError, match="output is not finite"):
        segment(model, picture(20, 20))


def test_errors_come_before_the_first_tile():
    assert not inspect.isgeneratorfunction(segment_tiles)
    with pytest.raises(ValueError, match="constant"):
        segment_tiles(network(), np.zeros((9, 9), np.uint8))


# -- instances ---------------------------------------------------------------------------------------------


def test_instances_are_4_connected():
    probability = np.array([[0.9, 0.1, 0.6], [0.1, 0.9, 0.6], [0.5, 0.9, 0.0]])
    np.testing.assert_array_equal(instances(probability), [[1, 0, 2], [0, 2, 2], [0, 2, 0]])
    np.testing.assert_array_equal(instances(probability, 0.7), [[1, 0, 0], [0, 2, 0], [0, 2, 0]])
    assert instances(probability).dtype == np.int32


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        (np.zeros((4, 4, 2)), r"one class of one slice, \[H, W\], got shape \[4, 4, 2\]"),
        (np.full((2, 2), 7.0), "within 0-1"),
        (np.array([[0.5, np.nan]]), "not be NaN"),
    ],
)
def test_instances_refuse(probability, message):
    with pytest.raises(ValueError, match=message):
        instances(probability)
