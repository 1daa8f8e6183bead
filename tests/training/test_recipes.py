"""Training from a recipe on each kind of data, at a size that takes seconds."""

import keras
import numpy as np
import pytest
import tifffile
from PIL import Image

from keras_seg import zoo
from keras_seg.recipe import load_recipe
from keras_seg.training import average, loop, train
from keras_seg.training.unets import evaluate, read_samples

MODEL = {"builder": "unet", "depth": 1, "base_channels": 4, "padding": "same", "dropout": 0.0}
AUGMENTATION = {"elastic_sigma": 1, "noise": 2}


def recipe(data, metric, steps=6, **model):
    return load_recipe(
        {
            "schema": 1,
            "name": "tiny",
            "summary": "for a test",
            "model": {**MODEL, **model},
            "data": {"tile": 32, "batch_size": 2, "augmentation": AUGMENTATION, **data},
            "training": {
                "steps": steps,
                "optimizer": {"name": "adam", "learning_rate": 0.01},
                "evaluate_every": max(1, steps // 2),
                "checkpoint_every": steps,
                "select": {"metric": metric, "mode": "max" if metric in ("seg", "mean_iou") else "min"},
            },
        }
    )


def cells(size=64, seed=0):
    """An image of bright squares on dark ground, and their instances."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.uint16)
    for k, corner in enumerate([(4, 4), (4, 36), (36, 8), (38, 40)], start=1):
        y, x = rng.integers(0, 4, 2) + corner
        labels[y : y + 18, x : x + 18] = k
    image = np.where(labels > 0, 180, 40) + rng.normal(0, 10, labels.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def test_isbi_improves_on_real_slices(shared, tmp_path):
    isbi = recipe(
        {"reader": "isbi", "train_slices": "0-1", "validation_slices": "20", "tile": 64},
        "pixel_error",
        steps=60,
    )
    lines = []
    model = train(isbi, shared / "data/isbi2012", tmp_path / "run", say=lines.append)
    assert "2 images to train on, 1 to validate; 60 steps" in lines[0]
    _, validation = read_samples(isbi, shared / "data/isbi2012")
    figures = evaluate(model, isbi, validation, metrics=("pixel_error",))
    assert set(figures) == {"val_loss", "pixel_error"}
    untrained = evaluate(zoo.load(isbi, weights=None), isbi, validation, metrics=("pixel_error",))
    assert figures["val_loss"] < untrained["val_loss"]
    assert (tmp_path / "run" / loop.BEST).exists()


def test_all_data_trains_on_the_validation_part_too(shared, tmp_path):
    isbi = recipe({"reader": "isbi", "train_slices": "0", "validation_slices": "24"}, "rand_error")
    lines = []
    train(isbi, shared / "data/isbi2012", tmp_path, steps=2, all_data=True, say=lines.append)
    assert "2 images to train on, 0 to validate; 2 steps" in lines[0]
    assert not (tmp_path / loop.BEST).exists() and (tmp_path / loop.LAST).exists()


@pytest.mark.filterwarnings("ignore:.*tracking markers")
def test_cell_tracking(tmp_path):
    for sequence in ("01", "02"):
        (tmp_path / sequence).mkdir()
        (tmp_path / f"{sequence}_GT/SEG").mkdir(parents=True)
        for frame in range(2):
            image, labels = cells(seed=frame)
            tifffile.imwrite(tmp_path / sequence / f"t00{frame}.tif", image)
            tifffile.imwrite(tmp_path / f"{sequence}_GT/SEG/man_seg00{frame}.tif", labels)
    data = {"reader": "cell_tracking", "train_sequences": ["01"], "validation_sequences": ["02"]}
    tracking = recipe(data, "seg", steps=60)
    model = train(tracking, tmp_path, tmp_path / "run", say=lambda line: None)
    figures = evaluate(model, tracking, read_samples(tracking, tmp_path)[1])
    assert figures["seg"] > 0.5


def test_folders_with_three_classes(tmp_path):
    for part in ("train", "validation"):
        (tmp_path / part / "images").mkdir(parents=True)
        (tmp_path / part / "masks").mkdir()
        for k in range(2):
            image, labels = cells(seed=k)
            kinds = np.where(labels == 0, 0, np.where(labels <= 2, 100, 200)).astype(np.uint8)
            Image.fromarray(np.where(kinds == 200, 255, image).astype(np.uint8)).save(
                tmp_path / part / f"images/{k}.png"
            )
            Image.fromarray(kinds).save(tmp_path / part / f"masks/{k}.png")
    data = {
        "reader": "folder",
        "classes": {"ground": 0, "grey": 100, "white": 200},
        "validation_images": "validation/images",
        "validation_masks": "validation/masks",
    }
    folders = recipe(data, "mean_iou", steps=120, classes=3)
    model = train(folders, tmp_path, tmp_path / "run", say=lambda line: None)
    assert evaluate(model, folders, read_samples(folders, tmp_path)[1])["mean_iou"] > 0.4
    with pytest.raises(ValueError, match="data.classes names 3 classes, the model has 2"):
        train(recipe(data, "mean_iou"), tmp_path, tmp_path / "other")


def write_one_image(folder):
    """images/a.png and masks/a.png."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    image, labels = cells()
    Image.fromarray(image).save(folder / "images/a.png")
    Image.fromarray(((labels > 0) * 255).astype(np.uint8)).save(folder / "masks/a.png")


def test_mixed_precision_trains_float32_weights_and_returns_a_float32_model(tmp_path):
    write_one_image(tmp_path)
    folder = {name: kind for kind in ("images", "masks") for name in (f"train_{kind}", f"validation_{kind}")}
    data = {"reader": "folder", "classes": {"ground": 0, "cell": 255}, **folder}
    mixed = recipe(data, "mean_iou", steps=60).override({"training.precision": "mixed_bfloat16"})
    model = train(mixed, tmp_path, tmp_path / "run", say=lambda line: None)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    assert evaluate(model, mixed, read_samples(mixed, tmp_path)[1])["mean_iou"] > 0.8


def test_averaged_weights_are_what_is_kept(tmp_path):
    """The average of one step is its result; a momentum near 1 keeps the first step's weights."""
    write_one_image(tmp_path)
    folder = {"train_images": "images", "train_masks": "masks"}
    base = recipe({"reader": "folder", "classes": {"ground": 0, "cell": 255}, **folder}, "mean_iou", steps=4)

    def kernel(name: str, steps: int, average: float) -> np.ndarray:
        changed = base.override({"training.optimizer.average": average})
        model = train(changed, tmp_path, tmp_path / name, steps=steps, say=lambda line: None)
        return model.get_layer("logits").kernel.numpy()

    first, fourth = kernel("1", 1, 0.0), kernel("4", 4, 0.0)
    np.testing.assert_allclose(kernel("average 1", 1, 0.5), first, atol=1e-6)
    np.testing.assert_allclose(kernel("average 4", 4, 0.999999), first, atol=1e-5)
    assert np.abs(fourth - first).max() > 1e-3
    between = kernel("average", 4, 0.5)
    assert 0 < np.abs(between - first).max() and np.abs(between - fourth).max() > 1e-4


def test_the_mean_of_two_runs(tmp_path):
    write_one_image(tmp_path)
    folder = {"train_images": "images", "train_masks": "masks"}
    base = recipe(
        {"reader": "folder", "classes": {"ground": 0, "cell": 255}, **folder},
        "mean_iou",
        normalization="batch",
    )
    models = [
        train(base.override({"training.seed": seed}), tmp_path, tmp_path / str(seed), say=lambda line: None)
        for seed in (0, 1)
    ]
    files = [tmp_path / str(seed) / loop.LAST for seed in (0, 1)]
    mean = average(base, tmp_path, files)
    kernels = [model.get_layer("bottom_conv1").kernel.numpy() for model in (*models, mean)]
    np.testing.assert_allclose(kernels[2], (kernels[0] + kernels[1]) / 2, atol=1e-6)
    # its statistics are of its own activations, not the mean of those of the runs
    means = [model.get_layer("bottom_norm1").moving_mean.numpy() for model in (*models, mean)]
    assert np.abs(means[2] - (means[0] + means[1]) / 2).max() > 1e-4
    with pytest.raises(ValueError, match="tiny: no weights files to average"):
        average(base, tmp_path, [])


def test_a_model_without_data_is_not_trained():
    with pytest.raises(ValueError, match="maskrcnn_r50_fpn: its recipe has no data and training blocks"):
        train(zoo.show("maskrcnn_r50_fpn"), ".", "run")
