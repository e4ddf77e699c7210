"""One picture of what a network will see: views pass after pass, each operation, mixed pairs, the speed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.config import Config
from tutelage.config.targets import build
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.errors import UserError
from tutelage.explain.scene import (
    Mixture,
    Scene,
    apply_operations,
    build_scene,
    choose_indices,
    draw_mixtures,
    draw_passes,
    list_magnitudes,
    measure_speed,
)
from tutelage.explain.sheet import Grid, Section, draw_sheet, save_sheet
from tutelage.randomness import Key
from tutelage.report.pictures import shorten_name
from tutelage.storage import digest

COLUMNS = 10
PASSES, PASSES_OF_TWO_VIEWS = 5, 3
TILES_WITHOUT_VIEWS = 4 * COLUMNS
TILE, SMALL_TILE = 140, 84  # pixels: multiples of MNIST's 28
MINUTE = 60
MIN_SECONDS = 0.01  # shorter times are not shown
HASH_LENGTH = 6
MAX_NAME_LENGTH = 72  # of a file, without its digest


def describe_speed(scene: Scene, rate: float) -> str:
    """Return one line on a speed (images per second) and how long a pass takes at it."""
    images = scene.stream.length
    seconds, rounded = images / rate, float(f"{rate:.2g}")
    duration = f"{seconds / MINUTE:.1f} min" if seconds >= MINUTE else f"{seconds:.2g} s"
    duration = duration if seconds >= MIN_SECONDS else f"less than {MIN_SECONDS} s"
    return f"{rounded:,.0f} images a second on one core of this machine: a pass over {images:,} images takes {duration}"


def describe_data(scene: Scene, arm: str) -> str:
    """Return one line on the data, the stage and the run of a sweep (``arm``) that are shown."""
    config, data = scene.config, scene.config.data
    colours, classes = "grey" if data.channels == 1 else "in colour", len(scene.data.source.classes)
    parts = [
        f"{data.target.rpartition('.')[2]}: {len(scene.stream.indices):,} labelled images of {data.image_size} x "
        f"{data.image_size} pixels, {colours}, {classes:,} {'class' if classes == 1 else 'classes'}",
        f"stage {scene.stage.name}, seed {config.seed}",
        *([arm] if arm else []),
    ]
    return "; ".join(parts)


def describe_transforms(scene: Scene) -> list[str]:
    """Return one line on each transform."""
    if scene.stage.one_pass:
        return ["no augmentation: the network sees the images once, as they are"]
    augmentation = scene.augmentation
    lines = [_format_transform(transform) for transform in augmentation.transforms]
    lines += [f"second view only: {_format_transform(transform)}" for transform in augmentation.strong]
    if augmentation.mix is not None:
        lines.append(_format_transform({"_target_": ".mix", **augmentation.mix.model_dump()}))
    return lines or ["no augmentation: each pass shows the images as they are"]


def _format_transform(config: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in config.items() if name != "_target_")
    return f"{_short_name(config)}({arguments})"


def _short_name(config: Mapping[str, Any]) -> str:
    return str(config["_target_"]).rpartition(".")[2]


def build_sections(scene: Scene) -> list[Section]:
    """Return all sections of the picture except the one on the speed."""
    labels, count = scene.data.source.labels, COLUMNS if scene.transforms else TILES_WITHOUT_VIEWS
    indices = choose_indices(labels, scene.stream.indices, count, Key(scene.config.seed, scene.stage.name))
    originals = [scene.read_original(int(index)) for index in indices]
    names = [_class_name(scene, label) for label in labels[indices]]
    views = _views_section(scene, indices, originals, names) if scene.transforms else _images_section(originals, names)
    sections = [views]
    example = max((scene.read_evaluation_image(int(index)) for index in indices), key=np.std)  # the most contrast
    for transform in _iterate_transforms(scene.transforms):
        sections += _operations_sections(transform, example)
    if scene.augmentation.mix is not None:
        sections.append(_mixtures_section(scene))
    return sections


def _class_name(scene: Scene, label: int) -> str:
    return shorten_name(scene.data.source.classes[label])


def _iterate_transforms(transforms: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of transforms, including those within compositions (OneOf and similar)."""
    for transform in transforms:
        inner = transform.get("transforms")
        yield from _iterate_transforms(inner) if isinstance(inner, Sequence) else [transform]


def _images_section(originals: Sequence[np.ndarray], names: Sequence[str]) -> Section:
    parts = [slice(start, start + COLUMNS) for start in range(0, len(originals), COLUMNS)]
    grids = [[Grid([("", originals[part])], TILE, heads=names[part])] for part in parts]
    return Section("Images", ["Some of the labelled images; no pass changes them."], grids)


def _views_section(scene: Scene, indices: np.ndarray, originals: Sequence[np.ndarray], names: Sequence[str]) -> Section:
    two = scene.pipeline.views > 1
    text = (
        "Above, labelled images as they are. Below, the exact views of each that training draws in its first "
        f"passes{'; a batch holds both views of a draw' if two else ''}."
    )
    rows_by_pass = [
        [(f"pass {number}", list(views[0])), *(("second view", list(view)) for view in views[1:])]
        for number, views in enumerate(draw_passes(scene, indices, PASSES_OF_TWO_VIEWS if two else PASSES))
    ]
    grids = [Grid([("as it is", originals)], TILE, heads=names)]
    grids += [Grid(rows, TILE) for rows in (rows_by_pass if two else [[row for (row,) in rows_by_pass]])]
    return Section("Views, pass after pass", [text], [[grid] for grid in grids])


def _operations_sections(config: Mapping[str, Any], image: np.ndarray) -> list[Section]:
    """Return the section on a transform that is made of operations; for any other transform an empty list."""
    from tutelage.augmentation.library import albumentations

    transform = build(config, albumentations.BasicTransform, "augmentation.transforms")
    if not hasattr(transform, "apply_operation"):
        return []
    magnitude = getattr(transform, "magnitude", None)
    marked = "" if magnitude is None else f"{magnitude:g} (this run)"
    heads = [marked if m == magnitude else f"{m:g}" for m in list_magnitudes(transform)]
    rows = apply_operations(transform, image)
    constant = {name: row[0] for name, row in rows.items() if all(np.array_equal(row[0], other) for other in row)}
    varying = [(name, row) for name, row in rows.items() if name not in constant]
    half = -(-len(varying) // 2)
    parts = [Grid(part, SMALL_TILE, heads, marked=marked) for part in (varying[:half], varying[half:]) if part]
    grids = [parts] if parts else []
    if constant:
        grids.append([Grid([("at any\nmagnitude", list(constant.values()))], SMALL_TILE, heads=list(constant))])
    text = "One image after each operation alone, at magnitudes from 0 to 30; where a sign is drawn, the positive one."
    return [Section(f"{_short_name(config)}, operation by operation", [text], grids)]


def _mixtures_section(scene: Scene) -> Section:
    mixtures = draw_mixtures(scene, COLUMNS)
    rows = [(name, [getattr(mixture, name) for mixture in mixtures]) for name in ("image", "partner", "result")]
    heads = [f"step {step}" for step in range(len(mixtures))]
    feet = ["\n+ ".join(_format_weights(scene, mixture)) for mixture in mixtures]
    text = (
        "From the batch of each of the first steps: an image, its partner, the mixture that the network sees, and the "
        "weight of each label."
    )
    return Section("Mixed pairs", [text], [[Grid(rows, TILE, heads, feet)]])


def _format_weights(scene: Scene, mixture: Mixture) -> list[str]:
    """Return each label with its weight to two places; weights that round to zero are left out."""
    if max(mixture.weights.values()) == 1:
        return ["not mixed"]
    weights = [(_class_name(scene, label), f"{weight:.2f}") for label, weight in mixture.weights.items()]
    return [f"{name} {weight}" for name, weight in weights if weight != "0.00"]


def file_name(scene: Scene) -> str:
    """Return the picture's file name: readable words, then a digest that differs between previews of the same words."""
    config, augmentation = scene.config, scene.augmentation
    data = config.data.model_dump(exclude={"num_workers"})
    content = digest([data, augmentation.model_dump(), config.seed, scene.stage.name])
    words = [config.data.target.rpartition(".")[2], Path(config.data.root or "").name]
    words += [_short_name(transform) for transform in scene.transforms] or ["as they are"]
    words += [name for name in ("cutmix", "mixup") if getattr(augmentation.mix, name, 0)]
    readable = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower())
    if len(readable) > MAX_NAME_LENGTH:
        readable = readable[:MAX_NAME_LENGTH].rpartition("-")[0]
    return f"{readable}-{content[:HASH_LENGTH]}.png"


def write_preview(config: Config, arm: str = "", on_progress: OnProgress = ignore_progress) -> tuple[Path, list[str]]:
    """Write the picture of what a network will see with a config, and return its file and lines that describe it.

    Args:
        config: of a run.
        arm: names the run of a sweep that is shown; empty without a sweep.
        on_progress: is called during long reads.

    Raises:
        UserError: the data is missing, the pipeline does not fit it, or the picture cannot be written.
    """
    scene = build_scene(config, on_progress)
    data, transforms = describe_data(scene, arm), describe_transforms(scene)
    sections = build_sections(scene)
    rate = describe_speed(scene, measure_speed(scene))
    file = Path(config.paths.outputs) / "previews" / file_name(scene)
    sections.append(Section("Pipeline and speed", [*transforms, rate]))
    figure = draw_sheet("What the network will see", [data], sections)
    try:
        save_sheet(figure, file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another paths.outputs") from None
    return file, [data, *transforms, rate]
