"""Cell Tracking Challenge folders: what counts as background in full and in partial frames, and bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tifffile

import keras_seg.data
from keras_seg.data.cell_tracking import cell_tracking, read
from keras_seg.losses import separate_touching, weight_map

SIZE = (60, 80)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, SIZE, dtype=np.uint8)


def cells(*squares, size=SIZE) -> np.ndarray:
    """Labels 1, 2, ... of squares (top, left, side)."""
    labels = np.zeros(size, np.uint16)
    for number, (top, left, side) in enumerate(squares, start=1):
        labels[top : top + side, left : left + side] = number
    return labels


LEFT, RIGHT = (20, 10, 12), (20, 55, 12)
BOTH = cells(LEFT, RIGHT)
BOTH_MARKED = cells((25, 15, 3), (25, 60, 3))


def write(root, *, images=None, masks=None, markers=None, sequence="01", truth="GT", digits=3):
    """A data set from dictionaries of frame number -> array."""
    for folder, prefix, arrays in (
        (sequence, "t", {0: IMAGE} if images is None else images),
        (f"{sequence}_{truth}/SEG", "man_seg", {0: BOTH} if masks is None else masks),
        (f"{sequence}_GT/TRA", "man_track", markers or {}),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number, array in arrays.items():
            tifffile.imwrite(root / folder / f"{prefix}{number:0{digits}d}.tif", array)
    return root


def test_the_function_wins_over_the_module_name():
    assert keras_seg.data.cell_tracking is cell_tracking


@pytest.mark.parametrize("digits", [3, 4])
def test_fully_annotated_frame(tmp_path, digits):
    (sample,) = read(write(tmp_path, markers={0: BOTH_MARKED}, digits=digits))
    np.testing.assert_array_equal(sample.image[..., 0], IMAGE)
    np.testing.assert_array_equal(sample.label, BOTH > 0)
    np.testing.assert_array_equal(sample.instances, BOTH)
    np.testing.assert_array_equal(sample.weight, weight_map(BOTH.astype(int)))


def test_only_annotated_frames_are_read(tmp_path):
    images = {number: np.roll(IMAGE, number, axis=0) for number in range(5)}
    write(tmp_path, images=images, masks={1: BOTH, 4: BOTH})
    samples = read(tmp_path, partial=False)
    assert [sample.name[-8:] for sample in samples] == ["t001.tif", "t004.tif"]
    np.testing.assert_array_equal(samples[1].image[..., 0], images[4])
    assert len(read(tmp_path, frames=[4], partial=False)) == 1


def test_several_sequences_and_silver_truth(tmp_path):
    write(tmp_path)
    write(tmp_path, sequence="02")
    write(tmp_path, truth="ST", masks={0: cells(LEFT)})
    assert len(read(tmp_path, ("01", "02"), partial=False)) == 2
    (silver,) = read(tmp_path, truth="ST", partial=False)
    np.testing.assert_array_equal(silver.instances, cells(LEFT))


def test_unannotated_cell_is_not_background(tmp_path):
    """The right cell has a tracking marker but no mask: it and all but the left cell's ring is unknown."""
    (sample,) = read(write(tmp_path, masks={0: cells(LEFT)}, markers={0: BOTH_MARKED}), background_ring=5)
    assert set(np.unique(sample.label)) == {-1, 0, 1}
    assert (sample.label[BOTH == 1] == 1).all()
    assert (sample.label[BOTH == 2] == -1).all()
    assert sample.label[26, 22:28].tolist() == [0] * 5 + [-1]  # 5 pixels beside the cell, then unknown
    assert (sample.label[:10] == -1).all()
    assert (sample.weight[sample.label == -1] == 0).all() and (sample.weight[sample.label >= 0] > 0).all()
    np.testing.assert_array_equal(sample.instances == -1, sample.label == -1)


def test_ring_keeps_clear_of_an_unannotated_neighbour(tmp_path):
    """The neighbour's marker lies in the ring; a cell as large as the annotated one is left out around it."""
    marker = (25, 26, 2)
    root = write(tmp_path, masks={0: cells(LEFT)}, markers={0: cells((25, 15, 3), marker)})
    (sample,) = read(root, background_ring=10)
    radius = np.hypot(12, 12) / 2
    y, x = np.indices(SIZE)
    distance = np.hypot(y - np.clip(y, 25, 26), x - np.clip(x, 26, 27))
    assert (sample.label[(distance <= radius) & (BOTH != 1)] == -1).all()
    assert (sample.label[BOTH == 1] == 1).all()
    assert sample.label[26, 9] == 0  # the far side of the ring stays


def test_marker_counts_as_covered_by_more_than_half_of_it(tmp_path):
    beside = cells((25, 21, 4))  # one of its four columns on the left cell
    root = write(tmp_path, masks={0: cells(LEFT)}, markers={0: beside})
    assert (read(root)[0].label == -1).any()
    mostly_on = cells((25, 19, 4))  # three of four columns
    write(tmp_path, markers={0: mostly_on})
    assert not (read(root)[0].label == -1).any()


def test_frames_without_markers_are_partial_and_say_so(tmp_path):
    root = write(tmp_path, masks={0: cells(LEFT)})
    with pytest.warns(
        UserWarning, match=r"no tracking markers .* for 1 frames, the first .*t000\.tif.*partial=False"
    ):
        (guessed,) = read(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (partial,), (full,) = read(root, partial=True), read(root, partial=False)
    np.testing.assert_array_equal(guessed.label, partial.label)
    assert (partial.label[BOTH == 2] == -1).all()
    assert (full.label[BOTH == 2] == 0).all()


def test_given_partial_frames(tmp_path):
    root = write(tmp_path, images={0: IMAGE, 1: IMAGE}, masks={0: BOTH, 1: cells(LEFT)})
    full, partial = read(root, partial=[1])
    assert (full.label >= 0).all() and (partial.label == -1).any()
    with pytest.raises(ValueError, match=r"partial: \[7\] are not among the annotated frames"):
        read(root, partial=[1, 7])


def test_unmasked_border(tmp_path):
    at_the_edge = cells(LEFT, (20, 68, 12))
    (sample,) = read(write(tmp_path, masks={0: at_the_edge}), partial=False, border=6)
    assert (sample.label[at_the_edge > 0] == 1).all()
    assert (sample.label[:6] == -1).all() and (sample.label[:20, -6:] == -1).all()
    assert (sample.label[6:20, 6:-6] == 0).all()


def test_touching_cells_are_parted_but_stay_whole_as_instances(tmp_path):
    touching = cells((20, 10, 12), (20, 22, 12))
    (sample,) = read(write(tmp_path, masks={0: touching}, markers={0: touching}))
    parted = separate_touching(touching, 2)
    np.testing.assert_array_equal(sample.label, parted > 0)
    assert sample.label[26, 20:24].tolist() == [1, 0, 0, 1]
    np.testing.assert_array_equal(sample.instances, touching)
    np.testing.assert_array_equal(sample.weight, weight_map(parted))
    (whole,) = read(tmp_path, separation=0)
    np.testing.assert_array_equal(whole.label, touching > 0)


def test_border_between_touching_cells_is_known_in_a_partial_frame(tmp_path):
    touching = cells((20, 10, 12), (20, 22, 12))
    (sample,) = read(write(tmp_path, masks={0: touching}), partial=True, background_ring=0)
    assert sample.label[26, 20:24].tolist() == [1, 0, 0, 1]
    assert (sample.label[touching == 0] == -1).all()


def test_8_bit_values_in_16_bit_files(tmp_path):
    root = write(tmp_path, images={0: IMAGE.astype(np.uint16)})
    with pytest.raises(ValueError, match=r"16-bit images without a value above 255.*value_range=\(0, 255\)"):
        read(root, partial=False)
    np.testing.assert_allclose(
        read(root, partial=False, value_range=(0, 255))[0].image[..., 0], IMAGE, atol=1e-4
    )


def test_dataset_of_tiles(tmp_path):
    root = write(tmp_path, masks={0: cells(LEFT)}, markers={0: BOTH_MARKED})
    batch = next(iter(cell_tracking(root, tile=48, output_tile=32, augment=False, background_ring=4)))
    assert batch["image"].shape == (1, 48, 48, 1)
    assert batch["label"].shape == (1, 32, 32) and (batch["label"].numpy() == -1).any()
    assert (batch["weight"].numpy()[batch["label"].numpy() == -1] == 0).all()


def test_image_smaller_than_a_tile(tmp_path):
    with pytest.raises(ValueError, match=r"t000\.tif: 60x80 pixels, smaller than"):
        cell_tracking(write(tmp_path), partial=False, tile=128, output_tile=128)


def test_missing_folders_and_no_annotated_frames(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: no such folder; the Cell Tracking Challenge layout is 01/t000"
    ):
        read(tmp_path / "nowhere")
    root = write(tmp_path, masks={})
    with pytest.raises(FileNotFoundError, match="02: no such folder"):
        read(root, "02")
    with pytest.raises(ValueError, match=r"SEG: no annotated frames; expected files such as man_seg000\.tif"):
        read(root)
    tifffile.imwrite(root / "01_GT/SEG/man_seg_000_001.tif", BOTH)
    with pytest.raises(ValueError, match="3-D annotations .* only 2-D is read"):
        read(root)


def test_masks_without_an_image_and_frames_without_masks(tmp_path):
    root = write(tmp_path, masks={0: BOTH, 2: BOTH, 5: BOTH})
    with pytest.raises(
        FileNotFoundError, match=r"no images for 2 of 3 masks .*: man_seg002\.tif, man_seg005\.tif"
    ):
        read(root)
    with pytest.raises(
        ValueError, match=r"frames: \[1\] have no masks in .*; its 3 annotated frames are \[0, 2, 5\]"
    ):
        read(root, frames=[0, 1])


def test_two_files_for_a_frame(tmp_path):
    write(write(tmp_path), digits=4)
    with pytest.raises(ValueError, match="two files for frame 0"):
        read(tmp_path)


def test_different_sizes_and_stacks(tmp_path):
    with pytest.raises(ValueError, match=r"man_seg000\.tif has 60x79 pixels, .*t000\.tif 60x80"):
        read(write(tmp_path, masks={0: BOTH[:, :-1]}))
    with pytest.raises(ValueError, match=r"man_track000\.tif has 59x80 pixels"):
        read(write(tmp_path, markers={0: BOTH_MARKED[:-1]}))
    with pytest.raises(ValueError, match=r"t000\.tif: holds 5 pages where one image is expected"):
        read(write(tmp_path, images={0: np.stack([IMAGE] * 5)}))


def test_labels_that_are_not_labels(tmp_path):
    with pytest.raises(ValueError, match=r"man_seg000\.tif: float32 values from 0; labels are integers"):
        read(write(tmp_path, masks={0: BOTH.astype(np.float32)}))
    with pytest.raises(ValueError, match=r"man_seg000\.tif: int16 values from -1"):
        read(write(tmp_path, masks={0: BOTH.astype(np.int16) - 1}))


def test_one_class(tmp_path):
    root = write(tmp_path, masks={0: np.zeros_like(BOTH)}, markers={0: np.zeros_like(BOTH)})
    with pytest.raises(
        ValueError, match=r"man_seg000\.tif: one class only, every annotated pixel is background"
    ):
        read(root)
    assert (read(root, allow_single_class=True)[0].label == 0).all()
    with pytest.raises(ValueError, match="partially annotated and without any mask"):
        read(root, partial=True, allow_single_class=True)
    write(root, masks={0: BOTH})
    with pytest.raises(ValueError, match=r"every annotated pixel is cell \(a wider background_ring"):
        read(root, partial=True, background_ring=0)


def test_constant_nan_empty_truncated_and_foreign_files(tmp_path):
    root = write(tmp_path, markers={0: BOTH_MARKED}, images={0: np.full(SIZE, 3, np.uint8)})
    path = root / "01/t000.tif"
    with pytest.raises(ValueError, match=r"t000\.tif: the image is constant, every pixel is 3"):
        read(root)
    tifffile.imwrite(path, np.full(SIZE, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"t000\.tif: 4800 of 4800 pixel values are NaN"):
        read(root)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"t000\.tif: the file is empty"):
        read(root)
    tifffile.imwrite(path, IMAGE)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"t000\.tif: the TIFF is truncated or damaged"):
        read(root)
    tifffile.imwrite(path, IMAGE)
    (root / "01_GT/SEG/man_seg000.tif").write_text("not a TIFF")
    with pytest.raises(ValueError, match=r"man_seg000\.tif: not an image"):
        read(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence": []}, "sequence: none given of"),
        ({"truth": "RES"}, "truth='RES': GT"),
        ({"partial": "some"}, "partial='some': \"auto\", True, False or the numbers"),
        ({"background_ring": -1}, "background_ring=-1, .* 0 or more"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path), **options)
