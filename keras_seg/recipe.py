"""The schema of a recipe: one YAML file that says how a model is built, trained and judged.

A recipe's `model:` block is the builder's arguments; `data:` and `training:` say how its weights come about;
`weights:`, `results:` and `expect:` what came of it. Unknown fields are refused with the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from keras_seg.recipe_models import MaskRCNNModel, Published, Share, UNetModel
from keras_seg.schema import Block, describe

Metric = Literal[
    "val_loss",
    "pixel_error",
    "pixel_disagreement",
    "rand_error",
    "warping_error",
    "v_rand",
    "v_info",
    "seg",
    "mean_iou",
    "bbox_AP",
    "bbox_AP50",
    "bbox_AP75",
    "segm_AP",
    "segm_AP50",
    "segm_AP75",
    "keypoints_AP",
    "keypoints_AP50",
    "keypoints_AP75",
    "AR100",
    "AR300",
    "AR1000",
]
MAX_SHOWN = 12  # entries of a list that a card shows
MOST_VALUES = 20_000  # of a recipe; class names may be thousands
# All others are errors.
HIGHER_IS_BETTER = (
    "v_rand",
    "v_info",
    "seg",
    "mean_iou",
    *(m for m in get_args(Metric) if "_AP" in m or m[:2] == "AR"),
)
# What chooses a member of the unions below: the name of a builder, of a reader, of an optimizer.
_TAGS = ("unet", "mask_rcnn", "isbi", "cell_tracking", "folder", "coco", "sgd", "adam")


def _parse_slices(value: Any) -> list[int]:
    """`"0-9, 12"`, `7` or a list of such, to a list of integers."""
    if not isinstance(value, list | tuple):
        value = [part for part in str(value).split(",") if part.strip()]
    slices: list[int] = []
    for part in value:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(part))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first:
            raise ValueError('must be slice numbers, as in [0, 1, 2] or "0-19" (both ends included)')
        slices.extend(range(first, last + 1))
    if len(set(slices)) < len(slices):
        raise ValueError("names a slice twice")
    return slices


Slices = Annotated[tuple[int, ...], BeforeValidator(_parse_slices)]


class Augmentation(Block):
    """Fields of `keras_seg.data.augment.Augmentation`, which explains them."""

    elastic_sigma: NonNegativeFloat = 10.0
    elastic_grid: Annotated[int, Field(ge=2)] = 3
    rotation: Literal["any", "right_angles", "none"] = "any"
    flips: bool = True
    shift: bool = True
    scale: NonNegativeFloat = 0.0
    brightness: Annotated[float, Field(ge=0, le=255)] = 20.0
    contrast: Share = 0.2
    gamma: NonNegativeFloat = 0.0
    noise: Annotated[float, Field(ge=0, le=255)] = 0.0
    interpolation: Literal["bicubic", "nearest"] = "bicubic"


class WeightMap(Block):
    """Arguments of `keras_seg.losses.weight_map`; `class_weights: null` balances the classes."""

    w0: NonNegativeFloat = 10.0
    sigma: PositiveFloat = 5.0
    class_weights: list[NonNegativeFloat] | None = None


class _Tiles(Block):
    """What every reader's data has: how samples become batches. `tile` is the side of the network's input."""

    tile: PositiveInt
    batch_size: PositiveInt = 1
    value_range: tuple[float, float] | None = None
    augmentation: Augmentation = Augmentation()
    weight_map: WeightMap = WeightMap()


class IsbiData(_Tiles):
    """Two multi-page TIFF stacks (file names inside the data folder) and which slices serve for what;
    `keras_seg.data.isbi` explains `membrane_edge_weight`."""

    reader: Literal["isbi"]
    volume: str = "train-volume.tif"
    labels: str = "train-labels.tif"
    membrane_edge_weight: NonNegativeFloat = 1.0
    train_slices: Annotated[Slices, Field(min_length=1)]
    validation_slices: Slices = ()

    @model_validator(mode="after")
    def _check_disjoint(self) -> IsbiData:
        if both := sorted(set(self.train_slices) & set(self.validation_slices)):
            raise ValueError(f"train_slices and validation_slices share {both}")
        return self


class CellTrackingData(_Tiles):
    """A Cell Tracking Challenge folder and which of its sequences serve for what."""

    reader: Literal["cell_tracking"]
    train_sequences: Annotated[tuple[str, ...], Field(min_length=1)]
    validation_sequences: tuple[str, ...] = ()
    border: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_disjoint(self) -> CellTrackingData:
        if both := sorted(set(self.train_sequences) & set(self.validation_sequences)):
            raise ValueError(f"train_sequences and validation_sequences share {both}")
        return self


class FolderData(_Tiles):
    """Folders of images and of their masks, inside the data folder; the other fields are arguments of
    `keras_seg.data.folder`, and `classes` has one entry for each class of the model."""

    reader: Literal["folder"]
    classes: dict[str, int | tuple[int, int, int]]
    mask_suffix: str = ""
    ignore_value: int | tuple[int, int, int] | None = None
    train_images: str = "train/images"
    train_masks: str = "train/masks"
    validation_images: str | None = None
    validation_masks: str | None = None

    @model_validator(mode="after")
    def _check_pair(self) -> FolderData:
        if (self.validation_images is None) != (self.validation_masks is None):
            raise ValueError("validation_images and validation_masks go together")
        return self


class DetectionAugmentation(Block):
    """Fields of `keras_seg.data.detection_geometry.DetectionAugmentation`, which explains them."""

    flip: Share = 0.5
    turns: bool = False
    zoom: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    large_scale_jitter: tuple[PositiveFloat, PositiveFloat] | None = None
    crop: PositiveInt | None = None
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    gamma: NonNegativeFloat = 0.0


class CocoData(Block):
    """COCO annotations and folders of images, inside the data folder; the other fields are arguments of
    `keras_seg.data.coco`. `short_side`: one number, or the ends of a range. `proposals` and `validation_proposals`: files of
    `keras-seg proposals`, inside the data folder too; then the second stage alone is trained and judged, on these."""

    reader: Literal["coco"]
    annotations: str
    images: str
    validation_annotations: str | None = None
    validation_images: str | None = None
    proposals: str | None = None
    validation_proposals: str | None = None
    batch_size: PositiveInt = 2
    short_side: PositiveInt | tuple[PositiveInt, PositiveInt] | None = 800
    max_side: PositiveInt | None = None
    keep_empty: bool = False
    value_range: tuple[float, float] | None = None
    augmentation: DetectionAugmentation = DetectionAugmentation()

    @model_validator(mode="after")
    def _check_pair(self) -> CocoData:
        if (self.validation_annotations is None) != (self.validation_images is None):
            raise ValueError("validation_annotations and validation_images go together")
        wanted = self.proposals is not None and self.validation_annotations is not None
        if wanted != (self.validation_proposals is not None):
            raise ValueError(
                "proposals, validation_annotations and validation_proposals go together: what is trained on stored proposals is "
                "judged on stored proposals"
            )
        return self


class _Optimizer(Block):
    """average: momentum of the weights' exponential moving average, which is then what is judged and kept; 0: none.
    clip_norm: the largest norm of all gradients together; 0: they are not clipped. accumulate: batches whose gradients
    make one update."""

    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: NonNegativeFloat = 0.0
    accumulate: PositiveInt = 1


class Sgd(_Optimizer):
    """Stochastic gradient descent; the momentum is the U-Net paper's (Section 3). A detector's weight decay is of kernels
    alone, and part of the gradient, as in the reference."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Adam(_Optimizer):
    """Adam with decoupled weight decay, for detectors of kernels alone."""

    name: Literal["adam"]


class Schedule(Block):
    """Linear warm-up over `warmup_steps`; it falls to zero over the last `decay_fraction` of the steps. At each of
    `drop_steps` the rate is divided by ten (He et al. 2017, Section 3.1). `reference_batch`: images a batch that the
    learning rate is meant for; with other batches, on all devices together, it changes in proportion (Goyal et al. 2017,
    "Accurate, large minibatch SGD", Section 2.1)."""

    warmup_steps: NonNegativeInt = 0
    decay_fraction: Share = 0.0
    drop_steps: tuple[PositiveInt, ...] = ()
    reference_batch: PositiveInt | None = None


class Select(Block):
    """Which validation figure chooses the best weights."""

    metric: Metric = "val_loss"
    mode: Literal["min", "max"] = "min"


class Training(Block):
    """The schedule of a run; `evaluate_every` and `checkpoint_every` are in steps. `precision`: "mixed_bfloat16" computes
    the layers in bfloat16 where the machine is faster so, "mixed_float16" those of a GPU in float16; weights, losses and
    evaluations stay float32. Of detectors: `freeze`, the first stages of the backbone that are not trained, and `detector`,
    fields of `keras_seg.models.rcnn_training.TrainingOptions`."""

    steps: PositiveInt
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    freeze: Annotated[int, Field(ge=0, le=5)] = 0
    detector: dict[str, Any] = Field(default_factory=dict)
    optimizer: Annotated[Sgd | Adam, Field(discriminator="name")]
    schedule: Schedule = Schedule()
    seed: NonNegativeInt = 0
    evaluate_every: PositiveInt = 1000
    checkpoint_every: PositiveInt = 1000
    select: Select = Select()

    @model_validator(mode="after")
    def _check_warmup(self) -> Training:
        if self.schedule.warmup_steps > self.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}, more than steps, {self.steps}"
            )
        return self


class Weights(Block):
    """A weights file beside the recipe, and its checksum."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+\.weights\.h5$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Result(Block):
    """One measured figure: on which data, and the command that gave it."""

    metric: Metric
    value: float
    data: str
    command: str


class Expect(Block):
    """What a run of this recipe reaches on its validation data; worse by more than `tolerance` is a failure."""

    metric: Metric
    value: float
    tolerance: NonNegativeFloat


Data = IsbiData | CellTrackingData | FolderData | CocoData


class Recipe(Block):
    """A whole recipe. `str(recipe)` is its card."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    summary: str
    note: str = ""
    model: Annotated[UNetModel | MaskRCNNModel, Field(discriminator="builder")]
    data: Annotated[Data, Field(discriminator="reader")] | None = None
    training: Training | None = None
    weights: Weights | None = None
    published: Published | None = None
    results: tuple[Result, ...] = ()
    expect: Expect | None = None

    _path: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check_blocks(self) -> Recipe:
        absent = [name for name in ("data", "training") if getattr(self, name) is None]
        if absent and (self.model.builder == "unet" or len(absent) == 1):
            raise ValueError(f"{' and '.join(absent)}: missing")
        if self.data and (self.data.reader == "coco") != (self.model.builder == "mask_rcnn"):
            raise ValueError(
                f"data.reader: {self.data.reader!r} is not for the builder {self.model.builder!r}"
            )
        if self.data and getattr(self.data, "proposals", None) and getattr(self.model, "rpn_only", False):
            raise ValueError(
                "data.proposals: the model is nothing but an RPN (rpn_only), which makes proposals"
            )
        if self.weights and self.published:
            raise ValueError(
                "weights and published: a recipe has weights of its own or published ones, not both"
            )
        return self

    @property
    def has_weights(self) -> bool:
        """Whether `weights="pretrained"` works, after a download perhaps."""
        return self.weights is not None or self.published is not None

    @property
    def path(self) -> Path | None:
        """The file that the recipe was read from; None for one made from a mapping."""
        return self._path

    @property
    def weights_path(self) -> Path | None:
        """Where the recipe's weights file lies; None if it has none."""
        return self._path.parent / self.weights.file if self.weights and self._path else None

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with the fields at dotted paths changed, as in `{"model.classes": 3}`; checked like a file.

        New `model.class_names` bring their own count of classes, and a new count drops the old names; so for keypoints.
        Raises ValueError naming the field.
        """
        fields = self.model_dump(by_alias=True, exclude_unset=True)
        for names, count in (("class_names", "classes"), ("keypoint_names", "keypoints")):
            before = getattr(self.model, count, None)
            if f"model.{names}" in changes:
                fields["model"].pop(count, None)
            elif changes.get(f"model.{count}", before) != before:
                fields["model"].pop(names, None)
        for path, value in changes.items():
            *parents, name = path.split(".")
            block = fields
            for parent in parents:
                if not isinstance(block.get(parent), dict):
                    block[parent] = {}
                block = block[parent]
            block[name] = value
        return _validate(fields, self._path)

    def __str__(self) -> str:
        lines = [self.name, self.summary, ""]
        for name in ("model", "data", "training"):
            if block := getattr(self, name):
                fields = block.model_dump(exclude_defaults=True)
                lines.append(f"{name:<9} " + ", ".join(_inline(*field) for field in fields.items()))
        if self.weights:
            lines.append(f"weights   {self.weights.file}, sha256 {self.weights.sha256}")
        elif self.published:
            fields = self.published.model_dump(exclude_none=True)
            lines.append("published " + ", ".join(_inline(*field) for field in fields.items()))
        else:
            lines.append("weights   none are published")
        lines += [f"result    {r.metric} {r.value:g} on {r.data} ({r.command})" for r in self.results]
        if self.expect:
            lines.append(f"expect    {self.expect.metric} {self.expect.value:g} ± {self.expect.tolerance:g}")
        return "\n".join([*lines, "", self.note] if self.note else lines)


def _values(fields: Any) -> Iterator[Any]:
    """All that a YAML file holds, with what it refers to as often as it does so: a few lines can say that a list holds a
    list ten times, which holds a list ten times, and so on."""
    yield fields
    inside = fields.values() if isinstance(fields, dict) else fields if isinstance(fields, list) else ()
    for value in inside:
        yield from _values(value)


def load_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """Read and check a recipe: a YAML file, or a mapping of the same fields.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or a wrong field: names the file, the field, what was given and what is allowed.
    """
    if isinstance(source, Mapping):
        return _validate(source, None)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe file")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{path}: brackets nested too deeply for a recipe") from None
    if any(number >= MOST_VALUES for number, _ in enumerate(_values(fields))):
        raise ValueError(f"{path}: holds more than {MOST_VALUES} values, which no recipe does")
    return _validate(fields, path)


def _validate(fields: Any, path: Path | None) -> Recipe:
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(describe(problem, tags=_TAGS) for problem in error.errors())
        raise ValueError(f"{path or 'recipe'}: {problems}") from None
    recipe._path = path
    return recipe


def _inline(name: str, value: Any) -> str:
    if isinstance(value, dict):
        value = "{" + ", ".join(_inline(*item) for item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        is_range = {*map(type, value)} == {int} and [*value] == [*range(value[0], value[0] + len(value))]
        shown = (
            [*map(str, value)] if len(value) <= MAX_SHOWN else [*map(str, value[:3]), "...", str(value[-1])]
        )
        value = f"{value[0]}-{value[-1]}" if is_range else f"[{', '.join(shown)}]"
    return f"{name} {value}"
