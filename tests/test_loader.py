"""Loading images into batches on the device: streams, shared memory, decoding, packs, workers."""

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
from helpers.traps import send_signal
from tutelage.augmentation import Pipeline
from tutelage.config.compose import compose
from tutelage.data import DataRuntime, StageData, Stream, data_module
from tutelage.data.datasets.download import ignore_progress
from tutelage.data.datasets.image_files import FileImages, image_files
from tutelage.data.files import contents, conversion, decoding, packing
from tutelage.data.files.decoding import BadImage, open_picture, read_pixels
from tutelage.data.files.folders import list_folder
from tutelage.data.files.packing import pack_images
from tutelage.data.loading import streams
from tutelage.data.loading.batches import EVALUATION_BATCH, EvalDataset, TrainDataset
from tutelage.data.loading.loader import map_tensors
from tutelage.data.loading.prefetch import PrefetchLoader
from tutelage.data.loading.shared_memory import SharedArray, SharedTexts, count_cores
from tutelage.data.loading.workers import ignore_signals
from tutelage.data.source import ArrayImages, WholeImages, resize_center_crop
from tutelage.errors import UserError, complain
from tutelage.models import ImageSpec, make_classifier
from tutelage.randomness import Key
from tutelage.runs.identity import run_identity
from tutelage.storage import PARTIAL_PREFIX, TRAILER_LENGTH

SIDE = 16
CROP = {"_target_": "tutelage.augmentation.RandomResizedCrop", "size": [SIDE, SIDE], "scale": [0.3, 1.0]}
FLIP = {"_target_": "albumentations.HorizontalFlip", "p": 0.5}
KEY = Key(0, "s", "labelled")
WHITE, LIMIT = (255, 255, 255), 10**6


def random_pixels(count: int, side: int = SIDE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def draw_photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, dtype=np.float32)
    for cells in (2, 4, 8, 16):
        image += cv2.resize(rng.normal(size=(cells, cells, 3)).astype(np.float32) * 40, (width, height))
    return np.clip(image, 0, 255).astype(np.uint8)


def encode_jpeg(image: np.ndarray | Image.Image, **options) -> bytes:
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
            for index in range(count):
                number += 1
                image = draw_photograph(20 + number % 7, 40 - number % 11, number)
                if index:
                    (folder / f"{index}.jpg").write_bytes(encode_jpeg(image, quality=90))
                else:
                    Image.fromarray(image).save(folder / "0.png")
    return str(top)


def folder_config(root: str, **changes):
    defaults = {"image_size": SIDE, "channels": 3, "mean": [0.3] * 3, "std": [0.3] * 3, "root": root}
    return data_config(**{"_target_": "tutelage.data.ImageFolder", **defaults, **changes})


def stage_data(
    count: int, batch: int = 8, steps: int = 4, transforms=(CROP, FLIP), strong=(), indices=None
) -> StageData:
    indices = np.arange(count) if indices is None else indices
    stream = Stream("labelled", indices, np.arange(len(indices)) % 3, batch)
    return StageData([stream], list(transforms), partial(Key, 0, "s"), steps, strong=list(strong))


def step_batches(images, channels: int = 3, **options) -> TrainDataset:
    return TrainDataset(images, stage_data(len(images), **options), (SIDE, SIDE, channels))


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for name in first for a, b in zip(first[name][:2], second[name][:2], strict=True))


# batches


def test_a_batch_lies_in_one_piece_of_memory_and_holds_each_images_own_view():
    array = random_pixels(30)
    dataset = step_batches(WholeImages(array), indices=np.arange(29, -1, -1), strong=[FLIP])
    pipeline = Pipeline([CROP, FLIP], KEY, [FLIP])
    for step in range(5):
        batch = dataset[step]["labelled"]
        assert batch.images.shape == (2 * 8, 3, SIDE, SIDE)
        assert batch.images.permute(0, 2, 3, 1).is_contiguous()
        passes, entries, copies = streams.StreamSampler(stage_data(30).streams[0], KEY).at(step)
        for row, (pass_, entry, copy) in enumerate(zip(passes, entries, copies, strict=True)):
            index = 29 - entry
            view = pipeline(array[index], pass_, index, copy)
            assert (batch.images[row].permute(1, 2, 0).numpy() == view).all()
            strong_view = batch.images[8 + row].permute(1, 2, 0).numpy()
            assert (strong_view == view).all() or (strong_view == view[:, ::-1]).all()
            assert batch.targets[row] == batch.targets[8 + row] == entry % 3


def test_a_batch_comes_from_a_worker_as_it_was_made():
    dataset = step_batches(WholeImages(random_pixels(30)))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals)
    for step, batch in enumerate(loader):
        assert equal(batch, dataset[step])
        assert batch["labelled"].images.permute(0, 2, 3, 1).is_contiguous()  # sending kept the memory layout


@pytest.mark.parametrize("channels", [1, 3])
def test_a_networks_logits_do_not_depend_on_the_memory_layout_of_the_pixels(channels):
    torch.manual_seed(0)
    spec = ImageSpec(channels, 28, ("a", "b"), (0.4,) * channels, (0.3,) * channels)
    network = make_classifier({"_target_": "tutelage.models.LeNet5"}, spec).eval()
    array = random_pixels(8, 28, channels)
    planes = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    assert torch.equal(network(torch.from_numpy(array).permute(0, 3, 1, 2)), network(planes))


def test_evaluation_gives_the_images_in_order_from_every_kind_of_storage():
    array, labels = random_pixels(EVALUATION_BATCH + 10), np.arange(EVALUATION_BATCH + 10)
    indices = np.random.default_rng(0).permutation(labels)[: EVALUATION_BATCH + 5]
    for images in (WholeImages(array), ArrayImages([array[:100], array[100:]], SIDE, 3)):
        batches = EvalDataset(images, labels, indices, EVALUATION_BATCH)
        assert len(batches) == 2
        eval_batches = [batches[0], batches[1]]
        assert (torch.cat([batch.indices for batch in eval_batches]).numpy() == indices).all()
        assert (torch.cat([batch.labels for batch in eval_batches]).numpy() == indices).all()
        pixels = torch.cat([batch.images for batch in eval_batches]).permute(0, 2, 3, 1).numpy()
        assert (pixels == array[indices]).all()


# long streams


@given(st.integers(2, 5000), st.integers(0, 2**62))
@settings(max_examples=50)
def test_the_order_of_a_pass_is_a_permutation_and_each_position_can_be_computed_alone(count, seed):
    keys = np.random.default_rng(seed).integers(0, 1 << 64, size=streams.ROUNDS, dtype=np.uint64)
    whole = streams.permute(np.arange(count), count, keys)
    assert sorted(whole) == list(range(count))
    positions = np.random.default_rng(seed).integers(0, count, 20)
    assert (streams.permute(positions, count, keys) == whole[positions]).all()


def test_every_entry_is_equally_likely_at_every_position():
    count, draws = 5, 4000
    rng, counts = np.random.default_rng(0), np.zeros((5, 5))
    for _ in range(draws):
        keys = rng.integers(0, 1 << 64, size=streams.ROUNDS, dtype=np.uint64)
        counts[np.arange(count), streams.permute(np.arange(count), count, keys)] += 1
    assert np.abs(counts / draws - 1 / count).max() < 5 * np.sqrt(0.2 * 0.8 / draws)  # five standard deviations


@given(st.integers(17, 60), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=50)
def test_a_long_pass_shows_every_image_once_though_its_order_is_made_in_parts(count, batch, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", 16)
        stream = Stream("pool", np.arange(count), np.zeros(count, dtype=np.int64), batch, np.arange(count) % 4)
        sampler = streams.StreamSampler(stream, Key(seed, "s", "pool"))
        draws = np.concatenate([sampler.at(step) for step in range(-(-2 * count // batch))], axis=1)[:, : 2 * count]
        for pass_, part in enumerate(np.split(draws, 2, axis=1)):
            assert (part[0] == pass_).all()
            assert sorted(part[1]) == list(range(count))
            assert (part[2] == part[1] % 4).all()
        assert (draws[1, :count] != draws[1, count:]).any()
        assert np.array_equal(sampler.at(3), streams.StreamSampler(stream, Key(seed, "s", "pool")).at(3))


# memory


@given(st.lists(st.text(st.characters(codec="utf-8")) | st.just("\udcff/\udc80.png"), max_size=20))
def test_texts_in_shared_memory_are_read_back_unchanged(texts):
    held = SharedTexts(texts)
    assert list(held) == texts
    assert len(held) == len(texts)
    assert held[1:-1] == texts[1:-1]
    for index in range(-len(texts), len(texts)):
        assert held[index] == texts[index]
    with pytest.raises(IndexError):
        held[len(texts)]


def map_file(folder: Path, array: np.ndarray) -> np.ndarray:
    array.tofile(folder / "array")
    return np.memmap(folder / "array", dtype=array.dtype, mode="r", shape=array.shape)


def test_workers_receive_handles_and_not_copies_of_the_data(tmp_path):
    array = random_pixels(20_000)
    paths = [f"/somewhere/{number}.png" for number in range(20_000)]
    long = Stream("pool", np.arange(20_000), np.zeros((20_000, 10), dtype=np.float32), 8)
    for thing in (
        step_batches(WholeImages(array)),
        step_batches(WholeImages(map_file(tmp_path, array))),
        step_batches(ArrayImages([array], SIDE, 3)),
        step_batches(FileImages(SharedTexts(paths), folder_config("/somewhere"))),
        EvalDataset(WholeImages(array), np.arange(20_000), np.arange(20_000), 512),
        long,
    ):
        assert len(ForkingPickler.dumps(thing)) < 10_000  # bytes


def test_a_view_of_a_mapped_file_is_sent_as_a_view_of_that_file(tmp_path):
    array = np.arange(2 * 3 * 4 * 5, dtype=np.int32).reshape(2, 3, 4, 5)
    for view in (map_file(tmp_path, array)[1:].transpose(0, 3, 2, 1), map_file(tmp_path, array)[:, ::-1, 1:, ::2]):
        state = SharedArray(view).__getstate__()
        assert "tensor" not in state
        again = SharedArray.__new__(SharedArray)
        again.__setstate__(state)
        assert (again.array == view).all()


@pytest.mark.slow
def test_a_spawned_worker_gives_the_same_batches(tmp_path):
    array = random_pixels(40)
    config = folder_config(write_folder(tmp_path / "data", {"train": 4, "test": 1}))
    files = image_files(list_folder(config.root), config).images
    for images in (WholeImages(array), files):
        dataset = step_batches(images, steps=2)
        loader = DataLoader(
            dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, multiprocessing_context="spawn"
        )
        for step, batch in enumerate(loader):
            assert equal(batch, dataset[step])


def test_a_runs_training_dataset_can_be_sent_to_spawned_workers(tmp_path):
    def check() -> None:
        get_batch = TrainDataset.__getitem__

        def send(self, step):
            assert len(ForkingPickler.dumps(self)) < 10_000  # bytes; the images alone are a million
            return get_batch(self, step)

        TrainDataset.__getitem__ = send

    overrides = ["model=mlp", "model.width=4", "schedule.epochs=null", "schedule.steps=2", "data.num_workers=0"]
    resource_sharer.stop()  # else the fork would ask this process's server for shared memory
    assert run(tmp_path, *overrides, before=check) == 0


LEAVES_A_WORKER = """
import numpy as np, torch
from torch.utils.data import DataLoader
from tutelage.data.loading.batches import EvalDataset
from tutelage.data.loading.workers import ignore_signals
from tutelage.data.source import WholeImages

batches = EvalDataset(WholeImages(np.zeros((4, 2, 2, 1), dtype=np.uint8)), np.zeros(4), np.arange(4), 4)
loader = DataLoader(batches, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, persistent_workers=True)
print(len(list(loader)), "batch", flush=True)
"""


def test_a_worker_that_still_runs_does_not_keep_its_parent_from_ending():
    process = subprocess.run([sys.executable, "-c", LEAVES_A_WORKER], capture_output=True, text=True, timeout=200)
    assert (process.returncode, process.stdout, process.stderr) == (0, "1 batch\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", ["arrays", pytest.param("files", marks=pytest.mark.slow)])
def test_a_workers_memory_does_not_grow_with_the_dataset(tmp_path, kind):
    (tmp_path / "0.jpg").write_bytes(encode_jpeg(draw_photograph(SIDE, SIDE)))
    path, large, batch = f"{tmp_path}/{'./' * 300}0.jp", 16_000, 64

    def measure_own_memory(count: int) -> int:
        if kind == "arrays":
            images = WholeImages(random_pixels(count, 32))
        else:
            images = FileImages(SharedTexts(path + "g" for _ in range(count)), folder_config(str(tmp_path)))
        dataset = step_batches(images, batch=batch, steps=large // batch)
        loader = DataLoader(
            dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, persistent_workers=True
        )
        earlier_children = set(multiprocessing.active_children())
        assert sum(1 for _ in loader) == large // batch
        (worker,) = set(multiprocessing.active_children()) - earlier_children
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))

    assert (
        measure_own_memory(large) - measure_own_memory(large // 10) < 4e6
    )  # bytes; the texts of a list alone would be 10 million


# decoding


def rotated_jpeg(image: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[conversion.ORIENTATION] = orientation
    return encode_jpeg(image, quality=90, exif=exif.tobytes())


@pytest.mark.parametrize("size", [(50, 75), (33, 17), (8, 8), (1, 3)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
def test_a_jpegs_pixels_are_pillows_to_the_bit(size, options, monkeypatch):
    monkeypatch.delattr(decoding, "to_pixels")
    image = draw_photograph(*size)
    contents = [
        encode_jpeg(image, quality=quality, subsampling=s, **options) for quality in (50, 95) for s in (0, 1, 2)
    ]
    contents += [encode_jpeg(image[..., 0], **options), encode_jpeg(image, keep_rgb=True, **options)]
    for content in contents:
        for channels, mode in ((1, "L"), (3, "RGB")):
            picture = open_picture(io.BytesIO(content), "x", channels, WHITE, LIMIT)
            expected = np.asarray(Image.open(io.BytesIO(content)).convert(mode)).reshape(*size, channels)
            assert (picture.read() == expected).all()
            assert picture.shape == expected.shape


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_jpeg_is_decoded_at_a_reduced_size_as_pillow_does(reduce):
    for channels, mode in ((1, "L"), (3, "RGB")):
        content = encode_jpeg(draw_photograph(80, 120) if channels == 3 else draw_photograph(80, 120)[..., 0])
        expected = Image.open(io.BytesIO(content))
        expected.draft(mode, (120 // reduce, 80 // reduce))
        pixels = open_picture(io.BytesIO(content), "x", channels, WHITE, LIMIT).read(reduce)
        assert pixels.shape == (80 // reduce, 120 // reduce, channels)
        assert (pixels == np.asarray(expected).reshape(pixels.shape)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright_once_also_when_reduced(orientation):
    from PIL import ImageOps

    content = rotated_jpeg(draw_photograph(48, 80), orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    picture = open_picture(io.BytesIO(content), "x", 3, WHITE, LIMIT)
    assert picture.shape == expected.shape
    assert (picture.read() == expected).all()
    half = picture.read(2)
    assert half.shape == (expected.shape[0] // 2, expected.shape[1] // 2, 3)
    small = cv2.resize(expected, (half.shape[1], half.shape[0]), interpolation=cv2.INTER_AREA)
    assert np.abs(half.astype(int) - small).mean() < 6


def test_a_jpegs_shape_is_known_and_too_large_ones_are_refused_before_anything_is_decoded(monkeypatch):
    from PIL import ImageFile

    def explode(*arguments):
        raise AssertionError("decoded")

    content = rotated_jpeg(draw_photograph(48, 80), 6)
    monkeypatch.setattr(ImageFile.ImageFile, "load", explode)
    monkeypatch.setattr(cv2, "imdecode", explode)
    assert open_picture(io.BytesIO(content), "x", 3, WHITE, LIMIT).shape == (80, 48, 3)
    with pytest.raises(UserError, match=r"^the file: cannot be read as an image \(80 x 48 are more than"):
        open_picture(io.BytesIO(content), "the file", 3, WHITE, 1000)


def test_a_cmyk_jpeg_is_decoded_by_pillow():
    image = Image.fromarray(draw_photograph(20, 30)).convert("CMYK")
    content = encode_jpeg(image, quality=90)
    assert (
        read_pixels(io.BytesIO(content), 3, WHITE, LIMIT) == np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    ).all()


BASES = [
    encode_jpeg(draw_photograph(40, 56)[..., :3] if colour else draw_photograph(40, 56)[..., 0], quality=85, **options)
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
            if math.prod(image.size) > LIMIT:  # the damage changed the size, which is refused first
                return
            image.load()
            expected = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Exception:
        expected = None
    if expected is None:
        with pytest.raises(BadImage):
            read_pixels(io.BytesIO(content), channels, WHITE, LIMIT)
    else:
        pixels = read_pixels(io.BytesIO(content), channels, WHITE, LIMIT)
        assert (pixels == expected.reshape(*expected.shape[:2], channels)).all()


def test_random_crops_are_cut_from_the_whole_image_of_a_file_and_evaluation_sees_the_square(tmp_path):
    config = folder_config(write_folder(tmp_path, {"train": 5, "test": 1}))
    listing = list_folder(config.root)
    images = image_files(listing, config).images
    whole = [np.asarray(Image.open(entry.path)) for entry in listing.entries]
    views = step_batches(images, batch=len(images))[0]["labelled"].images.permute(0, 2, 3, 1).numpy()
    pipeline = Pipeline([CROP, FLIP], KEY)
    entries = streams.StreamSampler(stage_data(len(images), batch=len(images)).streams[0], KEY).at(0).entries
    for row, index in enumerate(entries):
        assert (views[row] == pipeline(whole[index], 0, index)).all()
        assert (images[index] == resize_center_crop(whole[index], SIDE)).all()
    squares = step_batches(images, batch=len(images), transforms=[FLIP])[0]["labelled"].images
    for row, index in enumerate(entries):
        square = squares[row].permute(1, 2, 0).numpy()
        assert (square == images[index]).all() or (square == images[index][:, ::-1]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_the_shape_of_a_picture_is_that_of_its_pixels(kind, orientation):
    exif, file = Image.Exif(), io.BytesIO()
    exif[conversion.ORIENTATION] = orientation
    Image.fromarray(draw_photograph(20, 30)).save(file, kind, exif=exif)
    picture = open_picture(file, "x", 3, WHITE, LIMIT)
    sideways = orientation > 4 and kind not in {"BMP", "GIF"}  # these know no EXIF
    assert picture.shape == picture.read().shape == ((30, 20, 3) if sideways else (20, 30, 3))


def test_an_orientation_at_the_end_of_a_png_counts_and_the_rest_is_not_decoded_for_it(monkeypatch):
    from PIL import ImageFile

    exif, file = Image.Exif(), io.BytesIO()
    exif[conversion.ORIENTATION] = 6
    Image.fromarray(draw_photograph(20, 30)).save(file, "PNG", exif=exif)
    content = file.getvalue()
    start = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[start : start + 4], "big")
    plain, end = content[:start] + content[start + length :], -12  # of the chunk that ends the file
    last = plain[:end] + content[start : start + length] + plain[end:]
    assert open_picture(io.BytesIO(last), "x", 3, WHITE, LIMIT).shape == (30, 20, 3)
    monkeypatch.delattr(ImageFile.ImageFile, "load")
    assert open_picture(io.BytesIO(plain), "x", 3, WHITE, LIMIT).shape == (20, 30, 3)


def test_a_file_damaged_after_its_check_ends_a_run_in_one_line(tmp_path, capsys):
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
    message = capsys.readouterr().err
    assert message.startswith(f"tutelage: {path}: cannot be read as an image (image file is truncated")
    assert message.count("\n") == 1


# packs


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "SETTLED_NS", -1)  # scans of files that were written just now are remembered
    return tmp_path / "cache" / "tutelage" / "packs"


@pytest.fixture
def root(tmp_path) -> str:
    return write_folder(tmp_path / "data", {"train": 5, "val": 2, "test": 2})


def read_source(root: str, on_progress=lambda part, fraction: None, **changes):
    config = folder_config(root, **changes)
    source = image_files(list_folder(root), config, on_progress)
    if config.pack:
        source.images.prepare(np.arange(len(source.images)), on_progress)
    return source


def find_pack(cache: Path) -> Path:
    (file,) = cache.glob(f"*/{packing.PACK_FILE}")
    return file


def forbid_reading(monkeypatch) -> None:
    def explode(*arguments):
        raise AssertionError("an image was read")

    monkeypatch.setattr(FileImages, "__getitem__", explode)
    monkeypatch.setattr(FileImages, "picture", explode)


@pytest.mark.parametrize(("channels", "fit"), [(1, "crop"), (3, "crop"), (1, "pad"), (3, "stretch")])
def test_evaluation_images_from_a_pack_equal_those_from_the_files(cache, root, channels, fit):
    changes = {"channels": channels, "mean": [0.3] * channels, "std": [0.3] * channels, "fit": fit}
    files, pack = read_source(root, **changes), read_source(root, pack=True, **changes)
    assert find_pack(cache).stat().st_size == 18 * SIDE * SIDE * channels + TRAILER_LENGTH
    assert all((pack.images[index] == files.images[index]).all() for index in range(18))
    for name in ("labels", "train", "val", "test"):
        assert (getattr(pack, name) == getattr(files, name)).all()
    views = step_batches(pack.images, channels)[0]["labelled"].images
    views_of_a_copy = step_batches(WholeImages(np.array(pack.images)), channels)[0]["labelled"].images
    assert torch.equal(views, views_of_a_copy)  # crops are cut from the squares


def test_a_pack_is_written_once_with_a_progress_message(cache, root, monkeypatch):
    progress = []
    first = np.array(read_source(root, lambda part, fraction: progress.append((part, fraction)), pack=True).images)
    assert ("packing 18 images", 1.0) in progress
    forbid_reading(monkeypatch)
    assert (read_source(root, pack=True).images == first).all()
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


def test_other_contents_sizes_fits_or_backgrounds_have_a_pack_of_their_own(cache, root):
    read_source(root, pack=True)
    changed_configs = (
        {"image_size": 12},
        {"background": [0, 0, 0]},
        {"fit": "pad"},
        {"channels": 1, "mean": [0.3], "std": [0.3]},
    )
    for number, changes in enumerate(changed_configs, start=2):
        read_source(root, pack=True, **changes)
        assert len(list(cache.glob(f"*/{packing.PACK_FILE}"))) == number
    file = Path(root) / "train" / "cat" / "1.jpg"
    file.write_bytes(encode_jpeg(np.zeros((30, 30, 3), dtype=np.uint8)))
    index = list(read_source(root).names).index("train/cat/1.jpg")
    assert read_source(root, pack=True).images[index].max() == 0
    assert len(list(cache.glob(f"*/{packing.PACK_FILE}"))) == 6
    os.utime(file, ns=(1, 1))
    Path(root).rename(f"{root}-moved")
    read_source(f"{root}-moved", pack=True)
    assert len(list(cache.glob(f"*/{packing.PACK_FILE}"))) == 6  # other times and places are the same files


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "trailer"])
def test_a_damaged_pack_is_written_again(cache, root, damage):
    first = np.array(read_source(root, pack=True).images)
    file = find_pack(cache)
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[777] ^= 1
    elif damage == "trailer":
        content[-3] ^= 1
    file.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, content))
    assert (read_source(root, pack=True).images == first).all()


def test_a_pack_without_the_record_of_its_check_is_checked_and_not_written_again(cache, root, monkeypatch):
    first = np.array(read_source(root, pack=True).images)
    (find_pack(cache).parent / packing.CHECKED_FILE).unlink()
    forbid_reading(monkeypatch)
    parts = []
    assert (read_source(root, lambda part, fraction: parts.append(part), pack=True).images == first).all()
    assert parts == ["checking the packed images"]
    assert json.loads((find_pack(cache).parent / packing.CHECKED_FILE).read_text())["bytes"] > first.size


def test_a_killed_writer_leaves_nothing_to_the_next(cache, root):
    def die() -> int:
        def kill(part, fraction):
            if part.startswith("packing") and fraction > 0.5:
                os.kill(os.getpid(), signal.SIGKILL)

        read_source(root, kill, pack=True)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "IMAGES_A_TASK", 2)
        assert call_in_fork(die) == -signal.SIGKILL
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))
    assert list(cache.glob(f"*/{PARTIAL_PREFIX}*"))
    files = read_source(root).images
    packed = read_source(root, pack=True).images
    assert all((packed[index] == files[index]).all() for index in range(18))
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


def test_an_interrupted_writer_leaves_nothing(cache, root):
    def stop(part, fraction):
        if part.startswith("packing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_source(root, stop, pack=True)
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(cache, root, monkeypatch, when):
    read_source(root)  # the scan writes too
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
        read_source(root, pack=True)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))
    assert not list(cache.glob(f"*/{PARTIAL_PREFIX}*"))


def test_of_two_processes_one_packs_and_the_other_waits_for_it(cache, root, tmp_path, capfd):
    ready, go = multiprocessing.Event(), multiprocessing.Event()

    def pack_slowly() -> None:
        def hold(part, fraction):
            if part.startswith("packing"):
                ready.set()
                go.wait()

        read_source(root, hold, pack=True)

    process = multiprocessing.get_context("fork").Process(target=pack_slowly)
    process.start()
    assert ready.wait(200)
    parts = []

    def watch(part, fraction):
        parts.append(part)
        go.set()

    packed = read_source(root, watch, pack=True).images
    process.join()
    assert process.exitcode == 0
    assert "another process is packing the 18 images" in parts
    assert not [part for part in parts if part.startswith("packing")]
    assert "another process is packing the 18 images; waiting for it" in capfd.readouterr().err
    assert np.array(packed).shape == (18, SIDE, SIDE, 3)


def test_an_unreadable_file_ends_the_packing(cache, root, monkeypatch):
    source = read_source(root)
    path = Path(root) / "train" / "dog" / "0.png"
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/0.png: cannot be read as an image"):
        pack_images(source.images, [b"hash"] * 18, folder_config(root, pack=True), np.arange(18), ignore_progress)
    assert not list(cache.glob(f"*/{packing.PACK_FILE}"))


def test_packing_is_for_datasets_of_files_and_enters_the_identity():
    with pytest.raises(
        UserError, match=r"data.pack=true goes with data=image_folder, imagenet, table, not with .*MNIST"
    ):
        compose(["data=mnist", "+data.pack=true"])
    files = ["data=image_folder", "recipe=none", "data.root=x"]
    without, packs = (run_identity(compose([*files, f"data.pack={value}"]), "")["data"] for value in ("false", "true"))
    assert packs == {**without, "pack": True}


# workers


@pytest.mark.parametrize("value", ["some", "-1", "257", "1.5", "true"])
def test_an_invalid_number_of_workers_is_an_error_that_names_the_allowed_values(value):
    with pytest.raises(UserError, match=r"data.num_workers=.*: allowed are auto and numbers from 0 to 256"):
        compose([f"data.num_workers={value}"])


def test_the_number_of_workers_is_chosen_from_the_cores_and_the_storage(root, cache, monkeypatch):
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


def test_only_the_cores_that_the_process_may_use_are_counted():
    def count_on_one_core() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return count_cores()

    assert call_in_fork(count_on_one_core) == 1
    assert count_cores() <= len(os.sched_getaffinity(0))


def test_evaluation_starts_no_workers_for_images_that_are_pixels_and_no_more_than_batches(root, cache):
    def loader(batch_size: int, **changes) -> DataLoader:
        module = data_module(folder_config(root, num_workers=4, **changes))
        return module.eval_dataloader(module.source.train, batch_size)

    assert loader(512).num_workers == 0  # a single batch
    assert loader(4).num_workers == 3
    assert loader(4, pack=True).num_workers == 0


def test_a_run_on_files_does_not_depend_on_workers_and_can_be_stopped_with_and_without_a_pack(root, tmp_path):
    overrides = [
        "data=image_folder",
        "recipe=none",
        f"data.root={root}",
        f"data.image_size={SIDE}",
        "model=mlp",
        "model.width=8",
    ]
    overrides += ["schedule.epochs=null", "schedule.steps=9", "data.batch_size=4"]

    def use_small_batches() -> None:
        from tutelage.models import evaluation

        evaluation.EVALUATION_BATCH = 2  # so that validation has workers too

    def stop() -> None:

        use_small_batches()
        send_signal(signal.SIGTERM, 5)()

    outcomes = {}
    for pack in ("false", "true"):
        for workers in (0, 2):
            outputs = tmp_path / f"{pack}-{workers}"
            arguments = (*overrides, f"data.pack={pack}", f"data.num_workers={workers}")
            if workers:
                assert run(outputs, *arguments, before=stop) == 128 + signal.SIGTERM
            assert run(outputs, *arguments, before=use_small_batches) == 0
            outcomes[pack, workers] = outcome(outputs)
        assert outcomes[pack, 0] == outcomes[pack, 2]
    assert outcomes["true", 0] != outcomes["false", 0]


# the GPU


def test_map_tensors_maps_each_tensor_and_keeps_the_structure_of_the_batch():
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
def test_batches_are_prefetched_to_the_gpu_whole_and_in_order(workers):
    """Run in a fork, since forks of other tests could not use a GPU that this process has initialised."""

    def work() -> int:
        dataset = step_batches(WholeImages(random_pixels(300)), batch=256, steps=20)
        device = torch.device("cuda", 0)
        loader = PrefetchLoader(dataset, workers, device)
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
