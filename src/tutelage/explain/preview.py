"""One picture of what a network will see: views pass after pass, each operation, mixed pairs, the speed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.config import Config
from tutelage.config.targets import build
from tutelage.data.datasets.download import OnProgress, silent
from tutelage.errors import UserError
from tutelage.explain.scene import Mixture, Scene, chosen, magnitudes, mixtures, operations, scene_of, speed, views
from tutelage.explain.sheet import Grid, Section, draw, save
from tutelage.randomness import Key
from tutelage.report.pictures import shorten_name
from tutelage.storage import digest

COLUMNS = 10
PASSES, PASSES_OF_TWO_VIEWS = 5, 3
TILES_WITHOUT_VIEWS = 4 * COLUMNS
TILE, SMALL_TILE = 140, 84  # pixels: multiples of MNIST's 28
MINUTE = 60
LEAST_SECONDS = 0.01
HASH_LENGTH = 6
LONGEST_NAME = 72  # of a file, without its digest


def told_of_speed(scene: Scene, rate: float) -> str:
    """Return what a speed means for a pass."""
    images = scene.stream.length
    seconds, rounded = images / rate, float(f"{rate:.2g}")
    lasts = f"{seconds / MINUTE:.1f} min" if seconds >= MINUTE else f"{seconds:.2g} s"
    lasts = lasts if seconds >= LEAST_SECONDS else f"less than {LEAST_SECONDS} s"
    return f"{rounded:,.0f} images a second on one core of this machine: a pass over {images:,} images takes {lasts}"


def told_of_data(scene: Scene, arm: str) -> str:
    """Return one line on what is shown."""
    config, data = scene.config, scene.config.data
    colours = "grey" if data.channels == 1 else "in colour"
    parts = [
        f"{data.target.rpartition('.')[2]}: {len(scene.stream.indices):,} labelled images of {data.image_size} x "
        f"{data.image_size} pixels, {colours}, {len(scene.data.source.classes):,} classes",
        f"stage {scene.stage.name}, seed {config.seed}",
        *([arm] if arm else []),
    ]
    return "; ".join(parts)


def told_of_transforms(scene: Scene) -> list[str]:
    """Return one line on each transform."""
    if scene.stage.one_pass:
        return ["no augmentation: nearest neighbours store images as they are"]
    augmentation = scene.augmentation
    lines = [_written(transform) for transform in augmentation.transforms]
    lines += [f"second view only: {_written(transform)}" for transform in augmentation.strong]
    if augmentation.mix is not None:
        lines.append(_written({"_target_": ".mix", **augmentation.mix.model_dump()}))
    return lines or ["no augmentation: each pass shows the images as they are"]


def _written(transform: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in transform.items() if name != "_target_")
    return f"{_short(transform)}({arguments})"


def _short(transform: Mapping[str, Any]) -> str:
    return str(transform["_target_"]).rpartition(".")[2]


def sections(scene: Scene) -> list[Section]:
    """Return the parts of the picture, but for the speed."""
    labels, shown = scene.data.source.labels, TILES_WITHOUT_VIEWS if not scene.transforms else COLUMNS
    indices = chosen(labels, scene.stream.indices, shown, Key(scene.config.seed, scene.stage.name))
    originals = [scene.original(int(index)) for index in indices]
    names = [_name(scene, label) for label in labels[indices]]
    found = [_views(scene, indices, originals, names) if scene.transforms else _as_they_are(originals, names)]
    example = max((scene.image(int(index)) for index in indices), key=np.std)  # contrast shows what happens
    for transform in _leaves(scene.transforms):
        found += _operations(transform, example)
    if scene.augmentation.mix is not None:
        found.append(_mixtures(scene))
    return found


def _name(scene: Scene, label: int) -> str:
    return shorten_name(scene.data.source.classes[label])


def _leaves(transforms: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield transforms, those within compositions (OneOf and its kin) included."""
    for transform in transforms:
        inner = transform.get("transforms")
        yield from _leaves(inner) if isinstance(inner, Sequence) else [transform]


def _as_they_are(originals: Sequence[np.ndarray], names: Sequence[str]) -> Section:
    cuts = [slice(start, start + COLUMNS) for start in range(0, len(originals), COLUMNS)]
    grids = [[Grid([("", originals[cut])], TILE, heads=names[cut])] for cut in cuts]
    return Section("Images", ["Some of the labelled images; no pass changes them."], grids)


def _views(scene: Scene, indices: np.ndarray, originals: Sequence[np.ndarray], names: Sequence[str]) -> Section:
    two = scene.pipeline.views > 1
    told = (
        "Above, labelled images as they are. Below, what training draws of each in its first passes, to the "
        f"pixel{'; a batch holds both views of a draw' if two else ''}."
    )
    rows = [
        [(f"pass {number}", list(drawn[0])), *(("second view", list(view)) for view in drawn[1:])]
        for number, drawn in enumerate(views(scene, indices, PASSES_OF_TWO_VIEWS if two else PASSES))
    ]
    grids = [Grid([("as it is", originals)], TILE, heads=names)]
    grids += [Grid(part, TILE) for part in (rows if two else [[row for (row,) in rows]])]
    return Section("Views, pass after pass", [told], [[grid] for grid in grids])


def _operations(written: Mapping[str, Any], image: np.ndarray) -> list[Section]:
    """Return the section on a transform that is made of operations; of another none."""
    from tutelage.augmentation.library import albumentations

    transform = build(written, albumentations.BasicTransform, "augmentation.transforms")
    if not hasattr(transform, "example"):
        return []
    own = getattr(transform, "magnitude", None)
    marked = "" if own is None else f"{own:g} (this run)"
    heads = [marked if m == own else f"{m:g}" for m in magnitudes(transform)]
    found = operations(transform, image)
    same = {name: row[0] for name, row in found.items() if all(np.array_equal(row[0], other) for other in row)}
    rows = [(name, row) for name, row in found.items() if name not in same]
    half = -(-len(rows) // 2)
    parts = [Grid(part, SMALL_TILE, heads, marked=marked) for part in (rows[:half], rows[half:]) if part]
    grids = [parts] if parts else []
    if same:
        grids.append([Grid([("at any\nmagnitude", list(same.values()))], SMALL_TILE, heads=list(same))])
    told = "One image under each operation alone, at magnitudes from 0 to 30; where a sign is drawn, the positive one."
    return [Section(f"{_short(written)}, operation by operation", [told], grids)]


def _mixtures(scene: Scene) -> Section:
    found = mixtures(scene, COLUMNS)
    rows = [(name, [getattr(one, name) for one in found]) for name in ("image", "partner", "result")]
    heads = [f"step {step}" for step in range(len(found))]
    feet = ["\n+ ".join(_weighed(scene, one)) for one in found]
    told = (
        "From the batch of each of the first steps an image, its partner, what the network sees of the two, and how "
        "much each label weighs."
    )
    return Section("Mixed pairs", [told], [[Grid(rows, TILE, heads, feet)]])


def _weighed(scene: Scene, mixture: Mixture) -> list[str]:
    """Return what each label weighs, but for those that are nothing to two places."""
    if max(mixture.weights.values()) == 1:
        return ["not mixed"]
    told = [(_name(scene, label), f"{weight:.2f}") for label, weight in mixture.weights.items()]
    return [f"{name} {weight}" for name, weight in told if weight != "0.00"]


def file_name(scene: Scene) -> str:
    """Return a name that says what is shown; a digest tells previews apart whose names are the same."""
    config, augmentation = scene.config, scene.augmentation
    data = config.data.model_dump(exclude={"num_workers"})
    told = digest([data, augmentation.model_dump(), config.seed, scene.stage.name])
    words = [config.data.target.rpartition(".")[2], Path(config.data.root or "").name]
    words += [_short(transform) for transform in scene.transforms] or ["as they are"]
    words += [name for name in ("cutmix", "mixup") if getattr(augmentation.mix, name, 0)]
    readable = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower())
    if len(readable) > LONGEST_NAME:
        readable = readable[:LONGEST_NAME].rpartition("-")[0]
    return f"{readable}-{told[:HASH_LENGTH]}.png"


def write_preview(config: Config, arm: str = "", tell: OnProgress = silent) -> tuple[Path, list[str]]:
    """Write the picture of what a config shows to a network, and return its file and what to say of it.

    Args:
        config: of a run.
        arm: which run of a sweep it is; empty where it is none.
        tell: is told of long reads.

    Raises:
        UserError: the data is not there, the pipeline is none that could be trained with, or the picture has no place.
    """
    shown = scene_of(config, tell)
    data, transforms = told_of_data(shown, arm), told_of_transforms(shown)
    parts = sections(shown)
    rate = told_of_speed(shown, speed(shown))
    file = Path(config.paths.outputs) / "previews" / file_name(shown)
    parts.append(Section("Pipeline and speed", [*transforms, rate]))
    figure = draw("What the network will see", [data], parts)
    try:
        save(figure, file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another paths.outputs") from None
    return file, [data, *transforms, rate]
