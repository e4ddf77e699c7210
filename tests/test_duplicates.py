"""Exact duplicates: found within and between parts and in shards; reported, dropped or refused; scores without them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from helpers.configs import data_config, rgb_config
from helpers.images import random_images
from helpers.runs import only_run, run
from helpers.sources import make_source
from tutelage.config import DataConfig
from tutelage.config.compose import compose
from tutelage.data import ImageDataModule, Source, data_module, describe_duplicates, split
from tutelage.data.duplicates import find_duplicates, find_leaked
from tutelage.errors import UserError
from tutelage.terminal.table import build_header, build_notes

PICTURES = random_images(60, 8, 3)


def encode(number: int) -> bytes:
    """Return the PNG of one of 60 pictures, all different."""
    file = io.BytesIO()
    Image.fromarray(PICTURES[number]).save(file, "PNG")
    return file.getvalue()


def write_files(top: Path, files: dict[str, int]) -> Path:
    """Write files, each with the picture of a number."""
    for name, number in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(encode(number))
    return top


FILES = {
    **{f"train/cat/{n}.png": n for n in range(6)},
    **{f"train/dog/{n}.png": n for n in range(6, 12)},
    **{f"val/cat/{n}.png": n for n in (12, 13)},
    **{f"val/dog/{n}.png": n for n in (14, 15)},
    **{f"test/cat/{n}.png": n for n in range(16, 20)},
    **{f"test/dog/{n}.png": n for n in range(20, 24)},
    **{f"test-night/{label}/{n}.png": n for label, n in (("cat", 24), ("dog", 25))},
    **{f"unlabelled/{n}.png": n for n in range(26, 30)},
}
DUPLICATES = {
    "train/cat/test.png": 16,  # of the test set, as cat
    "unlabelled/test.png": 20,  # of the test set
    "unlabelled/val.png": 12,
    "val/dog/night.png": 25,  # of a further test set
    "train/dog/train.png": 6,
    "train/dog/cat.png": 0,  # a cat in train
    "test/cat/dog.png": 21,  # a dog in test
}
CONTRADICTORY = {"train/cat/0.png", "train/dog/cat.png"}


def folder_config(root: Path, **changes) -> DataConfig:
    return rgb_config(_target_="tutelage.data.ImageFolder", root=str(root), validation="auto", **changes)


def read_source(root: Path, **changes) -> tuple[Source, DataConfig]:
    config = folder_config(root, **changes)
    return data_module(config).source, config


def names(source: Source, indices) -> set[str]:
    return {source.names[int(index)] for index in indices}


def test_duplicates_are_reported_by_kind_and_name(tmp_path):
    source, config = read_source(write_files(tmp_path, FILES | DUPLICATES))
    leaked = {"test/cat/16.png", "test/dog/20.png", "test-night/dog/25.png"}
    assert names(source, find_leaked(source, split(source, config))) == leaked
    leaks, learned, tests, contradictions = describe_duplicates(source, split(source, config))
    assert leaks.startswith("3 test images also in the training, validation and unlabelled data: ")
    for pair in (
        "train/cat/test.png = test/cat/16.png",
        "test/dog/20.png = unlabelled/test.png",
        "val/dog/night.png = test-night/dog/25.png",
    ):
        assert pair in leaks
    assert learned.startswith("3 images more than once in the training, validation and unlabelled data: ")
    for pair in (
        "train/dog/6.png = train/dog/train.png",
        "train/cat/0.png = train/dog/cat.png",
        "val/cat/12.png = unlabelled/val.png",
    ):
        assert pair in learned
    assert tests == "1 image more than once in the test data: test/cat/dog.png = test/dog/21.png"
    assert contradictions.startswith("2 images with contradicting labels: ")


def test_of_several_duplicates_those_are_named_that_show_the_fault():
    source = make_source(np.array([0, 0, 1, 1]), 4, 0)  # the test images 4 to 7 have the labels 0, 0, 1, 1
    contents = np.array([9, 9, 9, 3, 4, 5, 9, 7], dtype=np.uint64)
    source = Source(**{**vars(source), "duplicates": find_duplicates(contents)})
    assert (
        "scores named without-duplicates leave them out" in describe_duplicates(source, split(source, data_config()))[0]
    )
    is_test_learned = Source(**{**vars(source), "test": source.test[2:3]})
    assert "left to score" in describe_duplicates(is_test_learned, split(is_test_learned, data_config()))[0]
    leaks, _, contradictions = describe_duplicates(source, split(source, data_config()))
    assert leaks.startswith("1 test image also in the training, validation and unlabelled data: 0 = 6; ")
    assert contradictions == "1 image with contradicting labels: 0 = 2"


def test_data_without_duplicates_has_nothing_to_report(tmp_path):
    source, config = read_source(write_files(tmp_path, FILES))
    assert not len(source.duplicates)
    assert not describe_duplicates(source, split(source, config))
    assert not len(find_leaked(source, split(source, config)))


def test_drop_keeps_each_image_once_and_leaves_test_sets_as_they_are(tmp_path):
    root = write_files(tmp_path, FILES | DUPLICATES)
    source, config = read_source(root, duplicates="drop")
    splits = split(source, config)
    parts = {
        "train": names(source, splits.labelled),
        "val": names(source, splits.validation),
        "unlabelled": names(source, splits.pool),
    }
    expected = {part: {name for name in FILES if name.startswith(f"{part}/")} for part in parts}
    expected["train"] -= CONTRADICTORY
    assert parts == expected
    assert names(source, splits.test) == {name for name in FILES | DUPLICATES if name.startswith("test/")}
    assert len(splits.further_tests["night"]) == 2
    assert splits.notes == (
        "data.duplicates=drop leaves out 7 duplicates (val 1, train 4, unlabelled 2), "
        "2 of them because their labels contradict each other",
    )
    assert describe_duplicates(source, splits) == [
        "1 image more than once in the test data: test/cat/dog.png = test/dog/21.png",
        "1 image with contradicting labels: test/cat/dog.png = test/dog/21.png",
    ]


def test_a_class_or_a_validation_set_that_drop_leaves_empty_is_an_error(tmp_path):
    root = write_files(tmp_path, {f"{c}/{n}.png": n for c in ("train/cat", "test/cat") for n in range(2)})
    write_files(root, {"train/dog/5.png": 5, "test/dog/6.png": 6})
    with pytest.raises(UserError, match="data.duplicates=drop: class 'cat' has no training image left"):
        split(*read_source(root, duplicates="drop"))
    write_files(root, {"train/cat/7.png": 7, "val/cat/6.png": 6})
    with pytest.raises(UserError, match="data.duplicates=drop: no validation image is left: all are"):
        split(*read_source(root, duplicates="drop"))


def test_stop_ends_with_the_names(tmp_path, capsys):
    root = write_files(tmp_path, FILES | DUPLICATES)
    with pytest.raises(UserError, match=r"^data.duplicates=stop: 7 images of data.root=.* with the content of another"):
        read_source(root, duplicates="stop")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert "train/cat/test.png = test/cat/16.png" in lines
    source, _ = read_source(write_files(tmp_path / "sound", FILES), duplicates="stop")
    assert len(source.train) == 12


def test_a_duplicate_on_the_other_side_of_a_split_is_a_leak(tmp_path):
    files = {f"{label}/{n}.png": 20 * c + n for c, label in enumerate(("cat", "dog")) for n in range(20)}
    root = write_files(tmp_path, files)
    source, config = read_source(root)
    splits = split(source, config)
    learned, tested = (source.names[int(part[0])] for part in (splits.labelled, splits.test))
    (root / learned).write_bytes((root / tested).read_bytes())
    source, config = read_source(root)
    reported = split(source, config)
    assert names(source, find_leaked(source, reported)) == {tested}
    source, config = read_source(root, duplicates="drop")
    splits = split(source, config)
    assert not len(find_leaked(source, splits))
    assert set(reported.labelled) - set(splits.labelled) == {list(source.names).index(learned)}
    assert (splits.test == reported.test).all()


def write_tar(path: Path, pictures: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, picture in enumerate(pictures):
            content = encode(picture)
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_images_of_shards_are_compared_with_the_files_and_not_with_each_other(tmp_path):
    root = write_files(tmp_path / "data", FILES)
    write_tar(tmp_path / "pool" / "0.tar", [40, 41, 17, 40])  # 17 is in the test set
    write_tar(tmp_path / "pool" / "1.tar", [3, 42, 41])  # 3 is in train
    pool = {"unlabelled": str(tmp_path / "pool")}
    source, config = read_source(root, **pool)
    splits = split(source, config)
    assert names(source, find_leaked(source, splits)) == {"test/cat/17.png"}
    notes = describe_duplicates(source, splits)
    assert "test/cat/17.png = 0.tar#2" in notes[0]
    assert notes[1].endswith("train/cat/3.png = 1.tar#0")
    assert len(notes) == 2
    source, config = read_source(root, duplicates="drop", **pool)
    splits = split(source, config)
    assert names(source, splits.pool) - set(FILES) == {"0.tar#0", "0.tar#1", "0.tar#3", "1.tar#1", "1.tar#2"}
    assert "(unlabelled 2)" in splits.notes[0]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=20), st.lists(st.lists(st.integers(0, 12), max_size=6)))
def test_duplicates_are_those_that_comparing_each_with_each_finds(files, shards):
    ids = np.concatenate([np.arange(8), np.arange(1, 6) << 60]).astype(np.uint64)  # equal first bits, and different
    found = find_duplicates(ids[files], (ids[shard] for shard in shards))
    everything = files + [value for shard in shards for value in shard]
    expected = {
        index
        for index, value in enumerate(everything)
        if value in (files[:index] + files[index + 1 :] if index < len(files) else files)
        or (index < len(files) and value in everything[len(files) :])
    }
    assert set(found[:, 0].tolist()) == expected
    contents = {}
    for index, number in found.tolist():
        assert contents.setdefault(number, everything[index]) == everything[index]
    assert len(set(contents.values())) == len(contents)


@given(st.integers(0, 99))
def test_after_drop_no_image_that_is_learned_from_has_a_duplicate_and_the_test_set_is_the_same(seed):
    rng = np.random.default_rng(seed)
    source = make_source(np.arange(40) % 2, 20 * (seed % 2), 30)
    contents = rng.integers(0, 80, len(source.labels)).astype(np.uint64)
    source = Source(**{**vars(source), "duplicates": find_duplicates(contents)})
    folds = {} if seed % 2 else rng.choice([{"folds": 4, "fold": 1}, {}])
    config = data_config(_target_="tutelage.data.ImageFolder", **folds)
    splits = split(source, config.model_copy(update={"duplicates": "drop"}))
    learned = contents[np.concatenate([splits.labelled, splits.pool])]
    assert len(np.unique(learned)) == len(learned)
    assert not np.isin(learned, contents[splits.test]).any()
    assert (splits.test == split(source, config).test).all()


def test_rows_of_hugging_face_without_an_image_are_no_duplicates_of_each_other(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pictures = [Image.fromarray(PICTURES[number]) for number in range(6)]
    config = rgb_config(_target_="tutelage.data.HuggingFace", on_bad_image="skip", duplicates="stop")
    for name, images in (("none", [*pictures, None, None]), ("duplicates", [*pictures, None, pictures[2]])):
        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 4}, features=features)
        rows.save_to_disk(str(tmp_path / name))
        source_of = data_module(config.model_copy(update={"root": str(tmp_path / name)}))
        if name == "none":
            assert list(source_of.source.left_out) == ["6", "7"]
        else:
            with pytest.raises(UserError, match=r"data.duplicates=stop: 1 image of .* with the content"):
                _ = source_of.source


def test_datasets_whose_images_are_not_compared_refuse_to_drop_duplicates():
    with pytest.raises(
        UserError, match="data.duplicates=drop goes with data=image_folder, imagenet, table, hugg.*Digits"
    ):
        compose(["data=digits", "+data.duplicates=drop"])

    class Own(ImageDataModule):
        def read(self) -> Source:
            return make_source(np.repeat(np.arange(2), 8), test=2, unlabelled=0)

    with pytest.raises(UserError, match="data.duplicates=drop: Own does not compare its images"):
        _ = Own(data_config(_target_="my.Own", duplicates="drop")).source


def test_a_run_has_its_test_score_also_without_the_images_that_it_learned_from(tmp_path, outputs):
    root = write_files(tmp_path / "data", FILES | DUPLICATES)
    shape = ("data.image_size=8", "data.batch_size=4", "schedule.epochs=null", "schedule.steps=2")
    network = ("model=perceptron", "augmentation=none", "callbacks.report=false")
    assert run(outputs, "data=image_folder", "recipe=none", f"data.root={root}", *shape, *network) == 0
    folder = only_run(outputs)
    record = json.loads((folder / "run.json").read_text())
    result = record["result"]
    stored = parquet.read_table(folder / "test.parquet").to_pydict()
    leaked = [path in {"test/cat/16.png", "test/dog/20.png"} for path in stored["path"]]
    assert sum(leaked) == 2
    correct = np.array(stored["predicted"]) == np.array(stored["truth"])
    assert result["test/accuracy"] == pytest.approx(correct.mean(), abs=1e-5)
    without = correct[~np.array(leaked)].mean()
    assert result["test-without-duplicates/accuracy"] == pytest.approx(without, abs=1e-5)
    assert "test-night-without-duplicates/accuracy" in result
    in_test = [name for name in record["data"]["leaked"] if name.startswith("test/")]
    assert sorted(in_test) == ["test/cat/16.png", "test/dog/20.png"]
    assert any("also learned from" in note for note in build_notes(record))
    assert any("also in the training" in note for note in record["data"]["notes"])
    assert "without-duplicates" in build_header(record)
