"""``tutelage preview``: what it shows is what training sees."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import loaded_packages
from helpers.runs import run
from tutelage import cli
from tutelage.app import commands
from tutelage.augmentation import RandAugment
from tutelage.augmentation.mixing import draw_mixing
from tutelage.config.compose import compose
from tutelage.explain import preview
from tutelage.explain.preview import describe_speed, write_preview
from tutelage.explain.scene import (
    Scene,
    apply_operations,
    build_scene,
    choose_indices,
    draw_mixtures,
    draw_passes,
    list_magnitudes,
)
from tutelage.explain.sheet import Grid, Section, draw_sheet, fit_image, save_sheet
from tutelage.randomness import Key
from tutelage.sweeps.overrides import find_first_job

LABELS, BATCH, PASSES = 40, 8, 3
TINY = ("data=digits", f"data.limit={LABELS}", "data.validation=none", f"data.batch_size={BATCH}")


def build_tiny_scene(*overrides: str) -> Scene:
    return build_scene(compose([*TINY, *overrides]))


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEGs of two classes, larger than the network's images, of different sizes and shapes."""
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            width, height = draw.integers(150, 400, 2)
            noise = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            noise.resize((int(width), int(height))).save(folder / label / f"{number}.jpg")


def record_training_batches(outputs: Path, *overrides: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the labelled images (B, H, W, C) and targets of each step that a real run trained on."""
    file = outputs.with_name("seen.pt")

    def watch() -> None:
        from tutelage.models import ImageClassifier

        learn, batches = ImageClassifier.training_step, []

        def training_step(self, batch, batch_idx):
            batches.append([part.clone() for part in batch["labelled"][:2]])
            torch.save(batches, file)
            return learn(self, batch, batch_idx)

        ImageClassifier.training_step = training_step

    length = ("schedule.epochs=null", f"schedule.steps={PASSES * LABELS // BATCH}")
    assert run(outputs, *TINY, *length, *overrides, before=watch) == 0
    return [(images.permute(0, 2, 3, 1).numpy(), targets.numpy()) for images, targets in torch.load(file)]


def run_command(monkeypatch, capsys, *arguments: str) -> str:
    """Return what the command prints, run in this process."""
    monkeypatch.setattr(sys, "argv", ["tutelage", *arguments])
    cli.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [
        ["augmentation=randaugment", "seed=3"],
        ["augmentation=weak_strong"],
        ["augmentation=affine_randaugment", "strategy=noisy_student", "data.labels_per_class=4", "data.limit=80"],
    ],
)
def test_the_views_are_those_of_training(outputs, overrides):
    steps_seen = record_training_batches(outputs, *overrides)
    scene = build_tiny_scene(*overrides)
    indices = choose_indices(scene.data.source.labels, scene.stream.indices, 10, scene.key)
    views = draw_passes(scene, indices, PASSES)
    a_pass = LABELS // BATCH
    for number in range(PASSES):
        steps = steps_seen[number * a_pass : (number + 1) * a_pass]
        by_pixels = {i.tobytes(): c for images, labels in steps for i, c in zip(images, labels, strict=True)}
        assert len(indices) == 10
        for rows in views[number]:
            for view, index in zip(rows, indices, strict=True):
                assert by_pixels[view.tobytes()] == scene.data.source.labels[index]
    assert not (views[0] == views[1]).all()


def test_views_of_files_are_crops_of_all_of_them_as_in_training(outputs, tmp_path):
    write_photographs(tmp_path / "photos", 6)
    files = (
        "data=image_folder",
        "recipe=none",
        f"data.root={tmp_path / 'photos'}",
        "augmentation=crop",
        "data.limit=null",
    )
    scene = build_tiny_scene(*files)
    indices = scene.stream.indices[:4]
    training_images = {image.tobytes() for images, _ in record_training_batches(outputs, *files) for image in images}
    assert all(view.tobytes() in training_images for view in draw_passes(scene, indices, 1)[0, 0])
    (section, *_) = preview.build_sections(scene)
    ((_, originals),) = section.grids[0][0].rows
    sizes = {image.shape for image in originals}
    assert len(sizes) == len(originals)
    assert all(max(height, width) >= 150 for height, width, _ in sizes)


@pytest.mark.parametrize("augmentation", ["cutmix", "mixup", "cutmix_mixup"])
def test_mixed_pairs_and_their_labels_are_those_that_training_sees(outputs, augmentation):
    overrides = [f"augmentation={augmentation}", "augmentation.mix.per=sample"]
    scene, steps = build_tiny_scene(*overrides), record_training_batches(outputs, *overrides)
    for step, mixture in enumerate(draw_mixtures(scene, 6)):
        images, targets = steps[step]
        row = [image.tobytes() for image in images].index(mixture.result.tobytes())
        assert {c: w for c, w in mixture.weights.items() if w} == {
            c: w for c, w in enumerate(targets[row].tolist()) if w
        }
        weight = draw_mixing(
            scene.augmentation.mix, Key(0, "supervised", "labelled"), step, BATCH, 28, 28
        ).label_weights[row]
        first, second = mixture.weights.values()  # two classes: 8 images of 10 classes have such neighbours
        assert (first, second) == (pytest.approx(weight), pytest.approx(1 - weight))


def test_two_views_of_a_draw_stand_below_each_other():
    scene = build_tiny_scene("augmentation=weak_strong")
    views = draw_passes(scene, scene.stream.indices[:4], 2)
    assert views.shape == (2, 2, 4, 28, 28, 1)
    weak = draw_passes(build_tiny_scene("augmentation=basic"), scene.stream.indices[:4], 2)
    assert (views[:, :1] == weak).all()
    assert not (views[:, 0] == views[:, 1]).all()
    (section, *_) = preview.build_sections(scene)
    labels = [label for (grid,) in section.grids for label, _ in grid.rows]
    assert labels == ["as it is", *["pass 0", "second view", "pass 1", "second view", "pass 2", "second view"]]


def test_one_image_of_each_class_is_shown_first_and_the_seed_chooses_it():
    labels = np.repeat([2, 0, 1], [30, 5, 2])
    first, again, other_seed = (choose_indices(labels, np.arange(37), 7, Key(seed, "x")) for seed in (0, 0, 1))
    assert labels[first[:6]].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(first)) == 7
    assert (first == again).all()
    assert not (first == other_seed).all()


def test_each_operation_is_shown_at_magnitudes_up_to_30_and_at_the_configs_own():
    transform = RandAugment(num_ops=2, magnitude=9)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert list_magnitudes(transform) == [0, 5, 9, 10, 15, 20, 25, 30]
    assert list_magnitudes(RandAugment(magnitude=10)) == [0, 5, 10, 15, 20, 25, 30]
    rows = apply_operations(transform, image)
    assert set(rows) == set(transform.operations)
    assert all((row[2] == transform.apply_operation(image, name, 9)).all() for name, row in rows.items())
    pushed = np.pad(image, ((0, 0), (7, 0), (0, 0)))[:, :16]  # 150/331 of 16 pixels, in whole ones
    assert (rows["TranslateX"][-1] == pushed).all()


def test_operations_within_compositions_are_shown_too():
    inner = "{_target_: tutelage.augmentation.TrivialAugment}"
    one_of = f"augmentation.transforms=[{{_target_: albumentations.OneOf, p: 0.5, transforms: [{inner}]}}]"
    titles = [section.title for section in preview.build_sections(build_tiny_scene("augmentation=none", one_of))]
    assert titles == ["Views, pass after pass", "TrivialAugment, operation by operation"]


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_fit():
    small = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    large = fit_image(small, 140)
    assert large.shape == (140, 140, 3)
    assert (large == np.kron(small[..., 0], np.ones((5, 5), dtype=np.uint8))[..., None]).all()
    assert fit_image(np.zeros((300, 150, 3), np.uint8), 100).shape == (100, 50, 3)


def test_tiles_are_written_to_the_file_unchanged(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    section = Section("Title", ["$ is no formula_"], [[Grid([("row", [image, image])], 84, heads=["a", "b"])]])
    save_sheet(draw_sheet("Sheet", ["told"], [section]), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as file:
        pixels = np.asarray(file.convert("RGB"))
    tile = fit_image(image, 84)
    rows, columns = (pixels[..., 0] == tile[0, 0, 0]).nonzero()
    matches = [np.array_equal(pixels[r : r + 84, c : c + 84], tile) for r, c in zip(rows, columns, strict=True)]
    assert sum(matches) == 2


def test_the_command_writes_a_picture_and_says_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preview, "measure_speed", lambda scene: 400.0)
    arguments = ["preview", *TINY, "augmentation=cutmix_mixup", f"paths.outputs={tmp_path / 'outputs'}"]
    output = run_command(monkeypatch, capsys, *arguments)
    assert "Digits: 40 labelled images of 28 x 28 pixels, grey, 10 classes; stage supervised, seed 0" in output
    assert "400 images a second on one core of this machine: a pass over 40 images takes 0.1 s" in output
    file = Path(output.splitlines()[-1].removeprefix("preview: "))
    assert file.parent == tmp_path / "outputs" / "previews"
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert 1500 <= picture.size[0] <= 2000
        picture.load()
    content = file.read_bytes()
    assert run_command(monkeypatch, capsys, *arguments) == output
    assert file.read_bytes() == content
    assert run_command(monkeypatch, capsys, *arguments, "seed=1") != output
    assert len(list(file.parent.iterdir())) == 2
    assert (
        run_command(monkeypatch, capsys, "runs", str(tmp_path / "outputs")) == f"no runs below {tmp_path / 'outputs'}\n"
    )


def test_nearest_neighbours_see_images_as_they_are(tmp_path):
    config = compose([*TINY, "model=nearest_neighbours", "augmentation=cutmix", f"paths.outputs={tmp_path}"])
    file, lines = write_preview(config)
    assert "the network sees the images once, as they are" in lines[1]
    assert file.name.startswith("digits-as-they-are-")
    (section,) = preview.build_sections(build_scene(config))
    assert [len(grid.rows) for (grid,) in section.grids] == [1, 1, 1, 1]


def test_the_time_of_a_pass_is_computed_from_the_speed():
    scene = build_tiny_scene()
    expected = "20 images a second on one core of this machine: a pass over 40 images takes 2 s"
    assert describe_speed(scene, 20.0) == expected
    assert describe_speed(scene, 0.1).endswith("takes 6.7 min")


def test_of_a_sweep_the_first_run_is_shown_and_named():
    overrides, arm = find_first_job(["experiment=knn_cost", "seed=3,4"], [])
    assert arm == "run 1 of 16: seed=3 model=nearest_neighbours data.labels_per_class=10"
    assert compose(overrides).data.labels_per_class == 10
    assert find_first_job(["experiment=why_cnn", "model=lenet5"], []) == (["experiment=why_cnn", "model=lenet5"], "")
    assert find_first_job(["seed=range(2,5)"], []) == (["seed=2"], "run 1 of 3: seed=2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.colour=1"], "unknown key 'data.colour' in 'data.colour=1'"),
        (["foo"], "'foo' is not KEY=VALUE"),
        (["data=image_folder", "recipe=none", "data.root=nowhere"], "nowhere"),
        (["augmentation=none", "augmentation.transforms=[{_target_: albumentations.CenterCrop, height: 8, width: 8}]"],
         "an image (28, 28, 1) came out as (8, 8, 1)"),
        (["paths.outputs=/dev/null"], "/dev/null/previews"),
    ],
)  # fmt: skip
def test_a_preview_that_cannot_be_drawn_is_an_error_of_one_line(overrides, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tutelage", "preview", *TINY, *overrides])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("tutelage: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "terminal", "opens"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({}, True, False),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":0", "CI": "true"}, True, False),
        ({"DISPLAY": ":0", "PATH": "/proc/nowhere"}, True, False),
    ],
)
def test_the_picture_is_opened_only_on_a_terminal_with_a_screen(changes, terminal, opens, tmp_path, monkeypatch):
    program, opened = tmp_path / "xdg-open", []
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PATH": str(tmp_path), **changes}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr("subprocess.Popen", lambda words, **_: opened.append(words))
    commands._open_picture(Path("picture.png"))
    assert opened == ([[str(program), "picture.png"]] if opens else [])


def test_a_program_that_cannot_be_started_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "xdg-open").write_text("no program")
    (tmp_path / "xdg-open").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    commands._open_picture(tmp_path / "picture.png")


def test_files_of_different_sizes_are_shown_in_colour(tmp_path):
    write_photographs(tmp_path / "photos", 3)
    config = compose(
        ["data=image_folder", "recipe=none", f"data.root={tmp_path / 'photos'}", f"paths.outputs={tmp_path}"]
    )
    file, lines = write_preview(config, "run 1 of 2: seed=0")
    assert lines[0].endswith("in colour, 2 classes; stage supervised, seed 0; run 1 of 2: seed=0")
    assert file.name.startswith("imagefolder-photos-randomresizedcrop-horizontalflip-")
    assert 100 < Image.open(file).size[1] < 2500


def test_help_names_preview_and_imports_neither_torch_nor_hydra():
    process, loaded = loaded_packages("tutelage.cli", "preview", "--help")
    assert process.returncode == 0
    assert "tutelage preview [OVERRIDES]" in process.stdout
    assert "tutelage" in loaded
    assert not loaded & {"torch", "hydra"}
