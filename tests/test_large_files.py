"""Large pictures: shrunk once and in bounded memory; packs of what is shown; evaluation batches by the network."""

import gzip
import resource
import struct
import threading
import time
import tracemalloc
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from helpers.configs import rgb_config
from helpers.forks import call_in_fork
from helpers.images import smooth_image, write_images
from tutelage.data import EVALUATION_BATCH, DataRuntime, StageData, Stream, data_module
from tutelage.data.datasets import image_files as image_files_module
from tutelage.data.datasets.download import ignore_progress
from tutelage.data.datasets.idx import read_idx
from tutelage.data.datasets.image_files import FileImages
from tutelage.data.files import conversion, large, packing
from tutelage.data.files.decoding import FilePicture, open_picture
from tutelage.data.files.memory import MemoryLimit
from tutelage.data.source import is_ready
from tutelage.errors import UserError
from tutelage.models import ImageSpec, evaluation_batch, make_classifier
from tutelage.randomness import Key

HEIGHT, WIDTH, FACTOR = 61, 97, 4
BACKGROUND = (10, 200, 30)
RGB = Image.fromarray(smooth_image((HEIGHT, WIDTH, 3)))
RGBA = RGB.copy()
RGBA.putalpha(RGB.convert("L"))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def open_content(content: bytes, channels: int = 3, white: int | None = None) -> FilePicture:
    return open_picture(BytesIO(content), "picture", channels, BACKGROUND, 10**9, white)


def reduce(pixels: np.ndarray, factor: int = FACTOR) -> np.ndarray:
    """Return the means of blocks, as float64, those at the ends of fewer pixels."""
    height, width = pixels.shape[:2]
    rows, columns = np.arange(0, height, factor), np.arange(0, width, factor)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    counts = np.diff([*rows, height])[:, None] * np.diff([*columns, width])
    return sums / counts[..., None]


CONTENTS = {
    "RGB": encode(RGB),
    "L": encode(RGB.convert("L")),
    "1": encode(RGB.convert("1")),
    "palette": encode(RGB.quantize(16), transparency=3),
    "RGBA": encode(RGBA),
    "LA": encode(RGBA.convert("LA")),
    "16 bits": encode(Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257), transparency=257 * 100),
    "CMYK": encode(RGB.convert("CMYK"), "TIFF"),
    "cut JPEG for Pillow": encode(RGB, "JPEG", quality=95) + b"more",
    "JPEG": encode(RGB, "JPEG", quality=95),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CONTENTS)
def test_a_picture_is_shrunk_to_the_means_of_its_pixels_strip_by_strip(name, channels, monkeypatch):
    monkeypatch.setattr(conversion, "STRIP_PIXELS", 5 * FACTOR * WIDTH)
    picture = open_content(CONTENTS[name], channels)
    shrunk = picture.shrink(FACTOR)
    difference = np.abs(shrunk - reduce(picture.read()))
    assert shrunk.shape == (-(-HEIGHT // FACTOR), -(-WIDTH // FACTOR), channels)
    if name == "JPEG":  # decoded at a reduced size, which is an average by another filter at the edges of blocks
        assert (difference.mean(), picture.read(FACTOR).tolist()) == (pytest.approx(0, abs=2), shrunk.tolist())
    else:
        assert difference.max() <= 0.51


def test_colours_of_sixteen_bits_are_shrunk_with_their_white():
    import cv2

    values = np.asarray(RGB).astype(np.uint16) * 16
    content = cv2.imencode(".png", values)[1].tobytes()
    picture = open_content(content, white=4095)
    assert np.abs(picture.shrink(FACTOR) - reduce(picture.read())).max() <= 0.51
    assert picture.read().max() > 200  # of 4095, not of 65535


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_shrunk_picture_is_upright(kind, orientation):
    exif = Image.Exif()
    exif[conversion.ORIENTATION] = orientation
    image = RGB.crop((0, 0, 96, 60))  # of whole blocks, whichever side they begin at
    content = encode(image, kind, exif=exif.tobytes())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB"))
    difference = np.abs(open_content(content).shrink(FACTOR) - reduce(upright))
    assert difference.mean() <= (2 if kind == "JPEG" else 0.5)


@pytest.mark.slow
def test_a_large_png_takes_one_copy_of_its_pixels():
    side, factor = 6_000, 16
    content = encode(Image.new("RGB", (side, side), (1, 2, 3)), compress_level=1)
    picture = open_content(content)

    def shrink() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (picture.shrink(factor) == (1, 2, 3)).all()
        return int((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > 1.3 * 4 * side**2)

    assert call_in_fork(shrink) == 0


# a folder with large pictures


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(large, "LARGE_PIXELS", 10_000)
    monkeypatch.setattr(image_files_module, "LARGE_PIXELS", 10_000)
    for part, count, size in (("train", 8, (304, 304)), ("test", 2, (320, 300))):
        for label in ("cat", "dog"):
            write_images(tmp_path / "data" / part / label, count)
            Image.fromarray(smooth_image((*size, 3))).save(tmp_path / "data" / part / label / "large.png")
    return tmp_path / "data"


def list_copies(root: Path) -> list[Path]:
    return sorted((root.parent / "cache" / "tutelage" / large.CACHE_NAME).glob("*.npy"))


def make_data(root: Path, **changes):
    return data_module(rgb_config(_target_="tutelage.data.ImageFolder", root=str(root), **changes), DataRuntime())


def make_stage(data) -> StageData:
    stream = Stream("labelled", data.splits.labelled, data.source.labels[data.splits.labelled], 4)
    crop = {"_target_": "tutelage.augmentation.RandomResizedCrop", "size": [16, 16]}
    return StageData([stream], [crop], lambda name: Key(0, "stage", name), steps=5)


def test_a_large_picture_is_decoded_once_for_all_epochs_runs_and_processes(root, monkeypatch):
    data, shrinks = make_data(root, num_workers=2), []
    shrink = FilePicture.shrink
    monkeypatch.setattr(FilePicture, "shrink", lambda *arguments: shrinks.append(arguments) or shrink(*arguments))
    first = [batch["labelled"].images for batch in data.train_batches(make_stage(data), range(5))]
    assert len(shrinks) == len(list_copies(root)) == 1  # both are the same picture

    def explode(*arguments):
        raise AssertionError("decoded again")

    monkeypatch.setattr(FilePicture, "shrink", explode)
    again = make_data(root, num_workers=0)
    batches = [batch["labelled"].images for batch in again.train_batches(make_stage(again), range(5))]
    assert all(map(torch.equal, first, batches))
    image = again.images[again.source.names.index("train/cat/large.png")]
    assert np.abs(image - reduce(np.asarray(Image.open(root / "train" / "cat" / "large.png")), 304 // 16)).mean() < 2
    assert np.load(list_copies(root)[0]).shape == (76, 76, 3)  # a quarter: an eighth would be smaller than 4 times 16


def test_a_large_picture_that_no_run_has_checked_is_shrunk_to_the_same_pixels(root):
    data = make_data(root)
    list(data.train_batches(make_stage(data), range(5)))  # stores the copies
    for name in ("train/cat/large.png", "train/cat/0.png"):
        alone = FileImages([str(root / name)], data.config)[0]
        assert np.array_equal(alone, data.images[data.source.names.index(name)])


def test_other_settings_have_copies_of_their_own_and_a_folder_without_permission_is_named(root, monkeypatch):
    for number, changes in enumerate([{}, {"background": [0, 0, 0]}, {"channels": 1, "mean": [0.5], "std": [0.5]}], 1):
        data = make_data(root, **changes)
        data.images.prepare(np.arange(len(data.images)), ignore_progress)
        assert len(list_copies(root)) == 2 * number

    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")
    with pytest.raises(UserError, match="cannot be written .*XDG_CACHE_HOME"):
        data.images.prepare(np.arange(len(data.images)), ignore_progress)


@pytest.mark.parametrize("damage", ["cut", "empty", "removed"])
def test_a_damaged_copy_is_not_read_and_is_made_again(root, damage):
    data = make_data(root)
    index, everything = data.source.names.index("test/cat/large.png"), np.arange(len(data.images))
    shrunk = data.images[index]
    assert not list_copies(root)  # only prepare() stores
    data.images.prepare(everything, ignore_progress)
    contents = {file: file.read_bytes() for file in list_copies(root)}
    for file, content in contents.items():
        file.unlink() if damage == "removed" else file.write_bytes(content[:-9] if damage == "cut" else b"")
    assert (data.images[index] == shrunk).all()
    data.images.prepare(everything, ignore_progress)
    assert {file: file.read_bytes() for file in list_copies(root)} == contents
    assert (data.images[index] == shrunk).all()


def test_the_space_for_copies_is_looked_at_and_said_before_they_are_made(root, monkeypatch, capsys):
    data = make_data(root)
    everything, disk_usage = np.arange(len(data.images)), large.shutil.disk_usage
    monkeypatch.setattr(large.shutil, "disk_usage", lambda path: SimpleNamespace(free=30_000))
    with pytest.raises(UserError, match=r"\(2 need 35.3 kB, 30.0 kB are free\): make room"):
        data.images.prepare(everything, ignore_progress)
    monkeypatch.setattr(large.shutil, "disk_usage", disk_usage)
    for _ in range(2):
        data.images.prepare(everything, ignore_progress)
    assert capsys.readouterr().err.count("shrinking 2 large pictures into 35.3 kB in ") == 1
    assert sum(np.load(file).nbytes for file in list_copies(root)) == 76 * 76 * 3 + 80 * 75 * 3 == 35_328


def test_a_pack_of_large_pictures_is_stopped_within_a_task_and_stores_no_copies(root, monkeypatch):
    data, decoded, is_stopping = make_data(root, pack=True, num_workers=1), [], threading.Event()
    read = FileImages.__getitem__

    def read_slowly(self, index):
        decoded.append(index)
        is_stopping.wait(20)
        time.sleep(0.05)  # the main thread stops the others meanwhile
        return read(self, index)

    def stop(part, fraction):
        is_stopping.set()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FileImages, "__getitem__", read_slowly)
        data.images.prepare(np.arange(len(data.images)), stop)
    assert len(decoded) < packing.IMAGES_A_TASK
    data.images.prepare(np.arange(len(data.images)), ignore_progress)
    assert not list_copies(root)


def test_a_folder_has_another_fingerprint_only_if_it_has_large_pictures(root, monkeypatch):
    shrunk = make_data(root).fingerprint()
    monkeypatch.setattr(large, "LARGE_PIXELS", 1_000_000)
    whole = make_data(root).fingerprint()
    assert whole != shrunk
    monkeypatch.setattr(large, "VERSION", 2)
    assert make_data(root).fingerprint() == whole


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_large_picture_is_padded_or_stretched_from_its_copy(root, fit):
    data = make_data(root, fit=fit)
    index = data.source.names.index("test/dog/large.png")
    assert data.images[index].shape == (16, 16, 3)
    assert data.images.picture(index).shape == (80, 80, 3)


def test_only_images_that_are_shown_are_packed(root, monkeypatch):
    decoded: list[int] = []
    read = FileImages.__getitem__
    monkeypatch.setattr(FileImages, "__getitem__", lambda self, index: decoded.append(index) or read(self, index))
    data = make_data(root, pack=True, labels_per_class=4, validation="inside")
    assert is_ready(data.images)
    assert not decoded
    list(data.train_batches(make_stage(data), range(5)))
    labelled = np.union1d(data.splits.labelled, data.splits.validation)
    assert sorted(decoded) == labelled.tolist()
    list(data.eval_dataloader(data.splits.validation, 512))
    assert len(decoded) == len(labelled) == 8
    list(data.eval_dataloader(data.splits.test, 512))
    assert sorted(decoded[8:]) == data.splits.test.tolist()
    list(data.eval_dataloader(data.splits.pool, 512))
    assert sorted(decoded[14:]) == sorted([*labelled, *data.splits.pool])  # a pack that is the same for every budget
    files = make_data(root)
    assert all((data.images[index] == files.images[index]).all() for index in range(len(files.images)))


def test_threads_together_stay_below_the_limit_and_one_that_needs_more_is_alone():
    limit, lock, held, peaks = MemoryLimit(10), threading.Lock(), [0], []

    def work(size: int) -> None:
        for _ in range(20):
            with limit.hold(size):
                with lock:
                    held[0] += size
                    peaks.append((held[0], size))
                with lock:
                    held[0] -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (3, 4, 5, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(peaks) == 80
    assert all(total <= 10 or total == size == 25 for total, size in peaks)


# evaluation batches


@pytest.mark.parametrize(
    ("model", "side", "size"),
    [
        ({"_target_": "tutelage.models.LeNet5"}, 28, 512),
        ({"_target_": "tutelage.models.SmallVGG"}, 32, 512),
        ({"_target_": "tutelage.models.SmallVGG"}, 256, 64),
        ({"_target_": "tutelage.models.Perceptron"}, 1024, 32),
        ({"_target_": "tutelage.models.SmallVGG"}, 16_384, 1),  # a layer is of more than 1 GiB: no forward is computed
    ],
)
def test_an_evaluation_batch_follows_from_the_image_size_and_the_network(model, side, size):
    network = make_classifier(model, ImageSpec(3, side, ("a", "b"), (0.5,) * 3, (0.5,) * 3)).train()
    assert evaluation_batch(network) == size
    assert network.training
    assert EVALUATION_BATCH % size == 0


# IDX files


def test_a_gzip_bomb_is_read_no_further_than_its_header_announces(tmp_path):
    (tmp_path / "images.gz").write_bytes(gzip.compress(struct.pack(">4i", 2051, 2, 3, 3) + bytes(30_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="its header announces 18 bytes, more follow"):
            read_idx(tmp_path / "images", 3)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
