"""The way from stored images to the device: batches, shared memory, decoding, packs, workers."""

import errno
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from helpers.configs import data_config
from helpers.forks import call_in_fork
from helpers.runs import outcome, run
from tutelage.augmentation import Pipeline
from tutelage.config.compose import compose
from tutelage.data import DataRuntime, StageData, Stream, data_module
from tutelage.data.datasets.image_files import FileImages, image_files
from tutelage.data.files import decoding, packing
from tutelage.data.files.decoding import BadImage, open_picture, read_pixels
from tutelage.data.files.listing import list_folder
from tutelage.data.files.packing import pack_images
from tutelage.data.loading import streams
from tutelage.data.loading.batches import EVALUATION_BATCH, EvalDataset, TrainDataset
from tutelage.data.loading.prefetch import PrefetchLoader, map_tensors
from tutelage.data.loading.shared_memory import SharedArray, SharedTexts, count_cores
from tutelage.data.loading.workers import ignore_signals
from tutelage.data.source import ArrayImages, WholeImages, resize_center_crop
from tutelage.errors import UserError, complain
from tutelage.models import ImageSpec, make_classifier
from tutelage.randomness import Key
from tutelage.runs.identity import run_identity
from tutelage.storage import PARTIAL_PREFIX

SIDE = 16
CROP = {"_target_": "tutelage.augmentation.RandomResizedCrop", "size": [SIDE, SIDE], "scale": [0.3, 1.0]}
FLIP = {"_target_": "albumentations.HorizontalFlip", "p": 0.5}
KEY = Key(0, "s", "labelled")
WHITE, LIMIT = (255, 255, 255), 10**6


def noise(count: int, side: int = SIDE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, dtype=np.float32)
    for cells in (2, 4, 8, 16):
        image += cv2.resize(rng.normal(size=(cells, cells, 3)).astype(np.float32) * 40, (width, height))
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray | Image.Image, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "JPEG", **options)
    return file.getvalue()


def write_folder(top: Path, sizes: dict[str, int]) -> str:
    """Write a folder of two classes, of JPEGs of several sizes and a PNG in each part, and return its path."""
    number = 0
    for part, count in sizes.items():
        for label in ("cat", "dog"):
            folder = top / part / label
            folder.mkdir(parents=True)
            for place in range(count):
                number += 1
                image = photograph(20 + number % 7, 40 - number % 11, number)
                if place:
                    (folder / f"{place}.jpg").write_bytes(jpeg(image, quality=90))
                else:
                    Image.fromarray(image).save(folder / "0.png")
    return str(top)


def folder_config(root: str, **changes):
    own = {"image_size": SIDE, "channels": 3, "mean": [0.3] * 3, "std": [0.3] * 3, "root": root}
    return data_config(**{"_target_": "tutelage.data.ImageFolder", **own, **changes})


def training(count: int, batch: int = 8, steps: int = 4, transforms=(CROP, FLIP), strong=(), indices=None) -> StageData:
    indices = np.arange(count) if indices is None else indices
    stream = Stream("labelled", indices, np.arange(len(indices)) % 3, batch)
    return StageData([stream], list(transforms), partial(Key, 0, "s"), steps, strong=list(strong))


def step_batches(images, channels: int = 3, **options) -> TrainDataset:
    return TrainDataset(images, training(len(images), **options), (SIDE, SIDE, channels))


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for name in one for a, b in zip(one[name][:2], other[name][:2], strict=True))


# batches


def test_a_batch_lies_in_one_piece_of_memory_and_holds_each_images_own_view():
    array = noise(30)
    dataset = step_batches(WholeImages(array), indices=np.arange(29, -1, -1), strong=[FLIP])
    view = Pipeline([CROP, FLIP], KEY, [FLIP])
    for step in range(5):
        shown = dataset[step]["labelled"]
        assert shown.images.shape == (2 * 8, 3, SIDE, SIDE)
        assert shown.images.permute(0, 2, 3, 1).is_contiguous()
        passes, entries, copies = streams.StreamSampler(training(30).streams[0], KEY).at(step)
        for place, (pass_, entry, copy) in enumerate(zip(passes, entries, copies, strict=True)):
            index = 29 - entry
            alone = view(array[index], pass_, index, copy)
            assert (shown.images[place].permute(1, 2, 0).numpy() == alone).all()
            twice = shown.images[8 + place].permute(1, 2, 0).numpy()
            assert (twice == alone).all() or (twice == alone[:, ::-1]).all()
            assert shown.targets[place] == shown.targets[8 + place] == entry % 3


def test_a_batch_comes_from_a_worker_as_it_was_made():
    dataset = step_batches(WholeImages(noise(30)))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals)
    for step, batch in enumerate(loader):
        assert equal(batch, dataset[step])
        assert batch["labelled"].images.permute(0, 2, 3, 1).is_contiguous()  # no copy turned it round


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_answers_the_same_however_the_pixels_lie(channels):
    torch.manual_seed(0)
    spec = ImageSpec(channels, 28, ("a", "b"), (0.4,) * channels, (0.3,) * channels)
    network = make_classifier({"_target_": "tutelage.models.LeNet5"}, spec).eval()
    array = noise(8, 28, channels)
    planes = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    assert torch.equal(network(torch.from_numpy(array).permute(0, 3, 1, 2)), network(planes))


def test_evaluation_sees_the_images_in_their_order_whatever_holds_them():
    array, labels = noise(EVALUATION_BATCH + 10), np.arange(EVALUATION_BATCH + 10)
    indices = np.random.default_rng(0).permutation(labels)[: EVALUATION_BATCH + 5]
    for images in (WholeImages(array), ArrayImages([array[:100], array[100:]], SIDE, 3)):
        batches = EvalDataset(images, labels, indices)
        assert len(batches) == 2
        found = [batches[0], batches[1]]
        assert (torch.cat([batch.indices for batch in found]).numpy() == indices).all()
        assert (torch.cat([batch.labels for batch in found]).numpy() == indices).all()
        shown = torch.cat([batch.images for batch in found]).permute(0, 2, 3, 1).numpy()
        assert (shown == array[indices]).all()


# long streams


@given(st.integers(2, 5000), st.integers(0, 2**62))
@settings(max_examples=50)
def test_places_are_permuted_one_by_one(count, seed):
    keys = np.random.default_rng(seed).integers(0, 1 << 64, size=streams.ROUNDS, dtype=np.uint64)
    whole = streams.permute(np.arange(count), count, keys)
    assert sorted(whole) == list(range(count))
    some = np.random.default_rng(seed).integers(0, count, 20)
    assert (streams.permute(some, count, keys) == whole[some]).all()


def test_every_entry_is_as_likely_at_every_place():
    count, draws = 5, 4000
    rng, seen = np.random.default_rng(0), np.zeros((5, 5))
    for _ in range(draws):
        keys = rng.integers(0, 1 << 64, size=streams.ROUNDS, dtype=np.uint64)
        seen[np.arange(count), streams.permute(np.arange(count), count, keys)] += 1
    assert np.abs(seen / draws - 1 / count).max() < 5 * np.sqrt(0.2 * 0.8 / draws)  # five standard deviations


@given(st.integers(17, 60), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=50)
def test_a_long_pass_shows_every_image_once_though_its_order_is_made_in_parts(count, batch, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", 16)
        stream = Stream("pool", np.arange(count), np.zeros(count, dtype=np.int64), batch, np.arange(count) % 4)
        draws = streams.StreamSampler(stream, Key(seed, "s", "pool"))
        shown = np.concatenate([draws.at(step) for step in range(-(-2 * count // batch))], axis=1)[:, : 2 * count]
        for pass_, part in enumerate(np.split(shown, 2, axis=1)):
            assert (part[0] == pass_).all()
            assert sorted(part[1]) == list(range(count))
            assert (part[2] == part[1] % 4).all()
        assert (shown[1, :count] != shown[1, count:]).any()
        assert np.array_equal(draws.at(3), streams.StreamSampler(stream, Key(seed, "s", "pool")).at(3))


# memory


@given(st.lists(st.text(st.characters(codec="utf-8")) | st.just("\udcff/\udc80.png"), max_size=20))
def test_texts_in_one_piece_are_the_texts(texts):
    held = SharedTexts(texts)
    assert list(held) == texts
    assert len(held) == len(texts)
    assert held[1:-1] == texts[1:-1]
    for index in range(-len(texts), len(texts)):
        assert held[index] == texts[index]
    with pytest.raises(IndexError):
        held[len(texts)]


def mapped(folder: Path, array: np.ndarray) -> np.ndarray:
    array.tofile(folder / "array")
    return np.memmap(folder / "array", dtype=array.dtype, mode="r", shape=array.shape)


def test_workers_are_sent_handles_not_copies(tmp_path):
    array = noise(20_000)
    paths = [f"/somewhere/{number}.png" for number in range(20_000)]
    long = Stream("pool", np.arange(20_000), np.zeros((20_000, 10), dtype=np.float32), 8)
    for thing in (
        step_batches(WholeImages(array)),
        step_batches(WholeImages(mapped(tmp_path, array))),
        step_batches(ArrayImages([array], SIDE, 3)),
        step_batches(FileImages(paths, folder_config("/somewhere"))),
        EvalDataset(WholeImages(array), np.arange(20_000), np.arange(20_000)),
        long,
    ):
        assert len(ForkingPickler.dumps(thing)) < 10_000  # bytes


def test_a_view_of_a_mapped_file_is_sent_as_a_view_of_that_file(tmp_path):
    array = np.arange(2 * 3 * 4 * 5, dtype=np.int32).reshape(2, 3, 4, 5)
    for view in (mapped(tmp_path, array)[1:].transpose(0, 3, 2, 1), mapped(tmp_path, array)[:, ::-1, 1:, ::2]):
        state = SharedArray(view).__getstate__()
        assert "tensor" not in state
        again = SharedArray.__new__(SharedArray)
        again.__setstate__(state)
        assert (again.array == view).all()


def test_a_worker_that_is_started_anew_gives_the_same_batches(tmp_path):
    array = noise(40)
    config = folder_config(write_folder(tmp_path / "data", {"train": 4, "test": 1}))
    files = image_files(list_folder(config.root), config).images
    for images in (WholeImages(array), files):
        dataset = step_batches(images, steps=2)
        loader = DataLoader(
            dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, multiprocessing_context="spawn"
        )
        for step, batch in enumerate(loader):
            assert equal(batch, dataset[step])


def test_what_a_run_gives_its_workers_can_be_sent_to_ones_that_are_started_anew(tmp_path):
    def check() -> None:
        shown = TrainDataset.__getitem__

        def send(self, step):
            assert len(ForkingPickler.dumps(self)) < 10_000  # bytes; the images alone are a million
            return shown(self, step)

        TrainDataset.__getitem__ = send

    overrides = ["model=mlp", "model.width=4", "schedule.epochs=null", "schedule.steps=2", "data.num_workers=0"]
    resource_sharer.stop()  # what hands out shared memory here would be asked for it by the fork
    assert run(tmp_path, *overrides, before=check) == 0


LEAVES_A_WORKER = """
import numpy as np, torch
from torch.utils.data import DataLoader
from tutelage.data.loading.batches import EvalDataset
from tutelage.data.source import WholeImages

batches = EvalDataset(WholeImages(np.zeros((4, 2, 2, 1), dtype=np.uint8)), np.zeros(4), np.arange(4))
loader = DataLoader(batches, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, persistent_workers=True)
print(len(list(loader)), "batch", flush=True)
"""


def test_a_worker_that_is_left_does_not_keep_its_parent_from_ending():
    done = subprocess.run([sys.executable, "-c", LEAVES_A_WORKER], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 batch\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_a_workers_memory_does_not_grow_with_the_dataset(tmp_path, kind):
    (tmp_path / "0.jpg").write_bytes(jpeg(photograph(SIDE, SIDE)))
    path, large, batch = f"{tmp_path}/{'./' * 300}0.jp", 16_000, 64

    def own_memory(count: int) -> int:
        if kind == "arrays":
            images = WholeImages(noise(count, 32))
        else:
            images = FileImages([path + "g" for _ in range(count)], folder_config(str(tmp_path)))
        dataset = step_batches(images, batch=batch, steps=large // batch)
        loader = DataLoader(
            dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, persistent_workers=True
        )
        before = set(multiprocessing.active_children())
        assert sum(1 for _ in loader) == large // batch
        (worker,) = set(multiprocessing.active_children()) - before
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))

    assert own_memory(large) - own_memory(large // 10) < 4e6  # bytes; the texts of a list alone would be 10 million


# decoding


def turned(image: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    return jpeg(image, quality=90, exif=exif.tobytes())


@pytest.mark.parametrize("size", [(50, 75), (33, 17), (8, 8), (1, 3)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
def test_a_jpegs_pixels_are_pillows_to_the_bit(size, options, monkeypatch):
    monkeypatch.delattr(decoding, "_decode_by_pillow")
    image = photograph(*size)
    contents = [jpeg(image, quality=quality, subsampling=s, **options) for quality in (50, 95) for s in (0, 1, 2)]
    contents += [jpeg(image[..., 0], **options), jpeg(image, keep_rgb=True, **options)]
    for content in contents:
        for channels, mode in ((1, "L"), (3, "RGB")):
            found = open_picture(io.BytesIO(content), "x", channels, WHITE, LIMIT)
            theirs = np.asarray(Image.open(io.BytesIO(content)).convert(mode)).reshape(*size, channels)
            assert (found.read() == theirs).all()
            assert found.shape == theirs.shape


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_jpeg_is_decoded_at_a_reduced_size_as_pillow_does(reduce):
    for channels, mode in ((1, "L"), (3, "RGB")):
        content = jpeg(photograph(80, 120) if channels == 3 else photograph(80, 120)[..., 0])
        theirs = Image.open(io.BytesIO(content))
        theirs.draft(mode, (120 // reduce, 80 // reduce))
        found = open_picture(io.BytesIO(content), "x", channels, WHITE, LIMIT).read(reduce)
        assert found.shape == (80 // reduce, 120 // reduce, channels)
        assert (found == np.asarray(theirs).reshape(found.shape)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright_once_also_when_reduced(orientation):
    from PIL import ImageOps

    content = turned(photograph(48, 80), orientation)
    theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    found = open_picture(io.BytesIO(content), "x", 3, WHITE, LIMIT)
    assert found.shape == theirs.shape
    assert (found.read() == theirs).all()
    half = found.read(2)
    assert half.shape == (theirs.shape[0] // 2, theirs.shape[1] // 2, 3)
    small = cv2.resize(theirs, (half.shape[1], half.shape[0]), interpolation=cv2.INTER_AREA)
    assert np.abs(half.astype(int) - small).mean() < 6


def test_a_jpegs_shape_is_known_and_too_large_ones_are_refused_before_anything_is_decoded(monkeypatch):
    from PIL import ImageFile

    def explode(*arguments):
        raise AssertionError("decoded")

    content = turned(photograph(48, 80), 6)
    monkeypatch.setattr(ImageFile.ImageFile, "load", explode)
    monkeypatch.setattr(cv2, "imdecode", explode)
    assert open_picture(io.BytesIO(content), "x", 3, WHITE, LIMIT).shape == (80, 48, 3)
    with pytest.raises(UserError, match=r"^the file: cannot be read as an image \(80 x 48 are more than"):
        open_picture(io.BytesIO(content), "the file", 3, WHITE, 1000)


def test_a_cmyk_jpeg_is_left_to_pillow():
    image = Image.fromarray(photograph(20, 30)).convert("CMYK")
    content = jpeg(image, quality=90)
    assert (
        read_pixels(io.BytesIO(content), 3, WHITE, LIMIT) == np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    ).all()


BASES = [
    jpeg(photograph(40, 56)[..., :3] if colour else photograph(40, 56)[..., 0], quality=85, **options)
    for colour in (True, False)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3})
]


@given(
    st.sampled_from(BASES),
    st.sampled_from(["cut", "drop", "zero", "noise", "insert"]),
    st.randoms(),
    st.sampled_from([1, 3]),
)
@settings(max_examples=400)
def test_a_damaged_jpeg_is_refused_where_pillow_refuses_it_and_else_gives_pillows_pixels(base, damage, rng, channels):
    content = bytearray(base)
    first, last = sorted(rng.randrange(2, len(base)) for _ in range(2))
    if damage == "cut":
        del content[last:]
    elif damage == "drop":
        del content[first:last]
    elif damage == "zero":
        content[first:last] = bytes(last - first)
    elif damage == "noise":
        content[first] = rng.randrange(256)
        content[last] = rng.randrange(256)
    else:
        content[first:first] = rng.randbytes(8)
    try:
        with Image.open(io.BytesIO(content), formats=decoding.FORMATS) as image:
            if math.prod(image.size) > LIMIT:  # damage to the size itself: refused for that
                return
            image.load()
            theirs = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Exception:
        theirs = None
    if theirs is None:
        with pytest.raises(BadImage):
            read_pixels(io.BytesIO(content), channels, WHITE, LIMIT)
    else:
        found = read_pixels(io.BytesIO(content), channels, WHITE, LIMIT)
        assert (found == theirs.reshape(*theirs.shape[:2], channels)).all()


def test_random_crops_are_cut_from_the_whole_image_of_a_file_and_evaluation_sees_the_square(tmp_path):
    config = folder_config(write_folder(tmp_path, {"train": 5, "test": 1}))
    listing = list_folder(config.root)
    images = image_files(listing, config).images
    whole = [np.asarray(Image.open(entry.path)) for entry in listing.entries]
    shown = step_batches(images, batch=len(images))[0]["labelled"].images.permute(0, 2, 3, 1).numpy()
    view = Pipeline([CROP, FLIP], KEY)
    entries = streams.StreamSampler(training(len(images), batch=len(images)).streams[0], KEY).at(0).entries
    for place, index in enumerate(entries):
        assert (shown[place] == view(whole[index], 0, index)).all()
        assert (images[index] == resize_center_crop(whole[index], SIDE)).all()
    squares = step_batches(images, batch=len(images), transforms=[FLIP])[0]["labelled"].images
    for place, index in enumerate(entries):
        square = squares[place].permute(1, 2, 0).numpy()
        assert (square == images[index]).all() or (square == images[index][:, ::-1]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_the_shape_of_a_picture_is_that_of_its_pixels(kind, orientation):
    exif, file = Image.Exif(), io.BytesIO()
    exif[decoding.ORIENTATION] = orientation
    Image.fromarray(photograph(20, 30)).save(file, kind, exif=exif)
    found = open_picture(file, "x", 3, WHITE, LIMIT)
    sideways = orientation > 4 and kind not in {"BMP", "GIF"}  # these know no EXIF
    assert found.shape == found.read().shape == ((30, 20, 3) if sideways else (20, 30, 3))


def test_an_orientation_at_the_end_of_a_png_counts_and_the_rest_is_not_decoded_for_it(monkeypatch):
    from PIL import ImageFile

    exif, file = Image.Exif(), io.BytesIO()
    exif[decoding.ORIENTATION] = 6
    Image.fromarray(photograph(20, 30)).save(file, "PNG", exif=exif)
    content = file.getvalue()
    place = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[place : place + 4], "big")
    plain, end = content[:place] + content[place + length :], -12  # of the chunk that ends the file
    last = plain[:end] + content[place : place + length] + plain[end:]
    assert open_picture(io.BytesIO(last), "x", 3, WHITE, LIMIT).shape == (30, 20, 3)
    monkeypatch.delattr(ImageFile.ImageFile, "load")
    assert open_picture(io.BytesIO(plain), "x", 3, WHITE, LIMIT).shape == (20, 30, 3)


def test_a_file_that_is_damaged_after_it_was_tried_ends_a_run_in_one_line(tmp_path, capsys):
    config = folder_config(write_folder(tmp_path, {"train": 3, "test": 1}))
    listing = list_folder(config.root)
    images = image_files(listing, config).images
    path = Path(listing.entries[1].path)
    path.write_bytes(path.read_bytes()[:-20])
    batches = iter(DataLoader(step_batches(images), batch_size=None, num_workers=1, worker_init_fn=ignore_signals))
    with pytest.raises(UserError) as caught:
        list(batches)
    batches._shutdown_workers()  # or the collection of this cycle, in a later test, waits 10 s for the worker
    complain(caught.value)
    told = capsys.readouterr().err
    assert told.startswith(f"tutelage: {path}: cannot be read as an image (image file is truncated")
    assert told.count("\n") == 1


# packs


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tutelage" / "packs"


@pytest.fixture
def root(tmp_path) -> str:
    return write_folder(tmp_path / "data", {"train": 5, "val": 2, "test": 2})


def source_of(root: str, tell=lambda what, share: None, **changes):
    config = folder_config(root, **changes)
    return image_files(list_folder(root), config, tell)


def the_file(cache: Path) -> Path:
    (file,) = cache.glob(f"*/{packing.PACK_FILE}")
    return file


def refuse(monkeypatch) -> None:
    def explode(*arguments):
        raise AssertionError("an image was read")

    monkeypatch.setattr(FileImages, "__getitem__", explode)
    monkeypatch.setattr(FileImages, "picture", explode)


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_from_a_pack_is_evaluation_from_the_files(cache, root, channels):
    changes = {"channels": channels, "mean": [0.3] * channels, "std": [0.3] * channels}
    files, pack = source_of(root, **changes), source_of(root, pack=True, **changes)
    assert isinstance(pack.images, np.memmap)
    assert pack.images.shape == (18, SIDE, SIDE, channels)
    assert all((pack.images[index] == files.images[index]).all() for index in range(18))
    for name in ("labels", "train", "val", "test"):
        assert (getattr(pack, name) == getattr(files, name)).all()
    shown = step_batches(WholeImages(pack.images), channels)[0]["labelled"].images
    squares = step_batches(WholeImages(np.array(pack.images)), channels)[0]["labelled"].images
    assert torch.equal(shown, squares)  # crops are cut from the squares


def test_a_pack_is_written_once_and_told_of(cache, root, monkeypatch):
    told = []
    first = np.array(source_of(root, lambda what, share: told.append((what, share)), pack=True).images)
    assert ("packing 18 images", 1.0) in told
    refuse(monkeypatch)
    assert (source_of(root, pack=True).images == first).all()
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


def test_other_files_sizes_or_backgrounds_have_a_pack_of_their_own(cache, root):
    source_of(root, pack=True)
    grown = {"image_size": 12}, {"background": [0, 0, 0]}, {"channels": 1, "mean": [0.3], "std": [0.3]}
    for number, changes in enumerate(grown, start=2):
        source_of(root, pack=True, **changes)
        assert len(list(cache.glob(f"*/{packing.PACK_FILE}"))) == number
    file = Path(root) / "train" / "cat" / "1.jpg"
    file.write_bytes(jpeg(np.zeros((30, 30, 3), dtype=np.uint8)))
    index = list(source_of(root).names).index("train/cat/1.jpg")
    assert source_of(root, pack=True).images[index].max() == 0
    os.utime(file, ns=(1, 1))
    source_of(root, pack=True)
    assert len(list(cache.glob(f"*/{packing.PACK_FILE}"))) == 6


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "trailer"])
def test_a_damaged_pack_is_written_again(cache, root, damage):
    first = np.array(source_of(root, pack=True).images)
    file = the_file(cache)
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[777] ^= 1
    elif damage == "trailer":
        content[-3] ^= 1
    file.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, content))
    assert (source_of(root, pack=True).images == first).all()


def test_a_pack_whose_check_was_forgotten_is_checked_not_written_again(cache, root, monkeypatch):
    first = np.array(source_of(root, pack=True).images)
    (the_file(cache).parent / packing.CHECKED_FILE).unlink()
    refuse(monkeypatch)
    told = []
    assert (source_of(root, lambda what, share: told.append(what), pack=True).images == first).all()
    assert told == ["checking the packed images"]
    assert json.loads((the_file(cache).parent / packing.CHECKED_FILE).read_text())["bytes"] > first.size


def test_a_killed_writer_leaves_nothing_to_the_next(cache, root):
    def die() -> int:
        def kill(what, share):
            if what.startswith("packing") and share > 0.5:
                os.kill(os.getpid(), signal.SIGKILL)

        source_of(root, kill, pack=True)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "IMAGES_A_TASK", 2)
        assert call_in_fork(die) == -signal.SIGKILL
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))
    assert list(cache.glob(f"*/{PARTIAL_PREFIX}*"))
    files = source_of(root).images
    found = source_of(root, pack=True).images
    assert all((found[index] == files[index]).all() for index in range(18))
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


def test_a_writer_that_is_told_to_stop_leaves_nothing(cache, root):
    def stop(what, share):
        if what.startswith("packing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source_of(root, stop, pack=True)
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(cache, root, monkeypatch, when):
    source_of(root)  # the scan writes too
    if when == "before":
        monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: type("", (), {"free": 5000})())
    else:
        fsync = os.fsync

        def full(descriptor):
            if PARTIAL_PREFIX in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
    reason = r"5.0 kB are free" if when == "before" else "No space left on device"
    with pytest.raises(
        UserError, match=rf"the 13.8 kB of 18 packed images cannot be stored \({reason}\): .*data.pack=false"
    ) as caught:
        source_of(root, pack=True)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


def test_of_two_processes_one_packs_and_the_other_waits_for_it(cache, root, tmp_path, capfd):
    ready, go = multiprocessing.Event(), multiprocessing.Event()

    def pack_slowly() -> None:
        def hold(what, share):
            if what.startswith("packing"):
                ready.set()
                go.wait()

        source_of(root, hold, pack=True)

    other = multiprocessing.get_context("fork").Process(target=pack_slowly)
    other.start()
    assert ready.wait(200)
    told = []

    def watch(what, share):
        told.append(what)
        go.set()

    found = source_of(root, watch, pack=True).images
    other.join()
    assert other.exitcode == 0
    assert "another process is packing the 18 images" in told
    assert not [what for what in told if what.startswith("packing")]
    assert "another process is packing the 18 images; waiting for it" in capfd.readouterr().err
    assert found.shape == (18, SIDE, SIDE, 3)


def test_an_unreadable_file_ends_the_packing(cache, root, monkeypatch):
    source = source_of(root)
    path = Path(root) / "train" / "dog" / "0.png"
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/0.png: cannot be read as an image"):
        pack_images(source.images, ["states"], folder_config(root, pack=True))
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))


def test_packing_is_for_datasets_of_files_and_part_of_what_a_run_is():
    with pytest.raises(
        UserError, match=r"data.pack=true goes with data=image_folder, imagenet, table, not with .*MNIST"
    ):
        compose(["data=mnist", "+data.pack=true"])
    files = ["data=image_folder", "data.root=x"]
    without, packs = (run_identity(compose([*files, f"data.pack={value}"]), "")["data"] for value in ("false", "true"))
    assert packs == {**without, "pack": True}


# workers


@pytest.mark.parametrize("value", ["some", "-1", "257", "1.5", "true"])
def test_a_number_of_workers_that_cannot_be_is_told_with_what_can(value):
    with pytest.raises(UserError, match=r"data.num_workers=.*: allowed are auto and numbers from 0 to 256"):
        compose([f"data.num_workers={value}"])


def test_workers_pick_themselves(root, cache, monkeypatch):
    from tutelage.data import modules

    monkeypatch.setattr(modules, "count_cores", lambda: 12)

    def workers(device: str, **changes) -> int:
        module = data_module(folder_config(root, **changes), DataRuntime(torch.device(device)))
        return module._count_workers()

    assert compose([]).data.num_workers == "auto"
    auto = {"num_workers": "auto"}
    assert workers("cpu", **auto) == workers("cuda", **auto) == 8
    assert workers("cpu", pack=True, **auto) == 0
    assert workers("cuda", pack=True, **auto) == 8
    assert workers("cpu", pack=True, num_workers=3) == 3
    monkeypatch.setattr(modules, "count_cores", lambda: 2)
    assert workers("cpu", **auto) == 2
    assert "num_workers" not in run_identity(compose([]), "")["data"]


def test_cores_are_those_that_the_process_may_use():
    def on_one() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return count_cores()

    assert call_in_fork(on_one) == 1
    assert count_cores() <= len(os.sched_getaffinity(0))


def test_evaluation_starts_no_workers_for_images_that_are_pixels_and_no_more_than_batches(root, cache, monkeypatch):
    from tutelage.data.loading import batches

    def loader(**changes) -> DataLoader:
        module = data_module(folder_config(root, num_workers=4, **changes))
        return module.eval_dataloader(module.source.train)

    assert loader().num_workers == 0  # a single batch
    monkeypatch.setattr(batches, "EVALUATION_BATCH", 4)
    assert loader().num_workers == 3
    assert loader(pack=True).num_workers == 0


def test_a_run_on_files_is_the_same_with_workers_from_a_pack_and_stopped(root, tmp_path):
    overrides = ["data=image_folder", f"data.root={root}", f"data.image_size={SIDE}", "model=mlp", "model.width=8"]
    overrides += ["schedule.epochs=null", "schedule.steps=9", "data.batch_size=4"]

    def in_small_batches() -> None:
        from tutelage.data.loading import batches

        batches.EVALUATION_BATCH = 2  # so that validation has workers too

    def stop() -> None:
        from tutelage.runs import callbacks

        in_small_batches()
        hook = callbacks.EpochTable.on_train_batch_end

        def send(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        callbacks.EpochTable.on_train_batch_end = send

    found = {}
    for pack in ("false", "true"):
        for workers in (0, 2):
            outputs = tmp_path / f"{pack}-{workers}"
            arguments = (*overrides, f"data.pack={pack}", f"data.num_workers={workers}")
            if workers:
                assert run(outputs, *arguments, before=stop) == 128 + signal.SIGTERM
            assert run(outputs, *arguments, before=in_small_batches) == 0
            found[pack, workers] = outcome(outputs)
        assert found[pack, 0] == found[pack, 2]
    assert found["true", 0] != found["false", 0]


# the GPU


def test_each_tensor_of_a_batch_is_reached_and_its_shape_kept():
    from tutelage.data import EvalBatch, StreamBatch

    batch = {
        "labelled": StreamBatch(torch.ones(2), torch.zeros(1)),
        "pool": EvalBatch(*(torch.ones(n) for n in (1, 2, 3))),
    }
    twice = map_tensors(batch, lambda tensor: 2 * tensor)
    assert type(twice["pool"]) is EvalBatch
    assert twice["labelled"].images.tolist() == [2, 2]
    assert [len(part) for part in twice["pool"]] == [1, 2, 3]


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_gpu_one_ahead_whole_and_in_order(workers):
    """In a fork: those that other tests begin could not use a GPU that this process has started."""

    def work() -> int:
        dataset = step_batches(WholeImages(noise(300)), batch=256, steps=20)
        device = torch.device("cuda", 0)
        loader = PrefetchLoader(dataset, device, batch_size=None, num_workers=workers, worker_init_fn=ignore_signals)
        assert len(loader) == 20
        busy = torch.rand(2000, 2000, device=device)
        for _ in range(2):
            count = 0
            for step, batch in enumerate(loader):
                images = batch["labelled"].images
                assert images.device == device
                assert images.permute(0, 2, 3, 1).is_contiguous()
                busy = (busy @ busy).clamp(0, 1)  # the batch is read while the next ones are copied
                total = images.long().sum() + busy.sum().long() * 0
                del images, batch
                assert total.item() == dataset[step]["labelled"].images.long().sum()
                count += 1
            assert count == 20
        return 0

    assert call_in_fork(work) == 0
