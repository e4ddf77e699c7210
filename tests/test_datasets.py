"""Public datasets: files written in the original formats, read by Tutelage and compared with torchvision."""

import gzip
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from helpers.dataset_files import STL10_CLASSES, TEST, TRAIN, UNLABELLED, make_labels, write_stl10
from helpers.images import random_images
from tutelage.data import UNKNOWN, Source
from tutelage.data.datasets.cifar import CIFAR10, cifar10, cifar100
from tutelage.data.datasets.download import Remote
from tutelage.data.datasets.fashion_mnist import FASHION_MNIST, fashion_mnist
from tutelage.data.datasets.idx import read_idx
from tutelage.data.datasets.mnist import MNIST, mnist
from tutelage.data.datasets.stl10 import stl10
from tutelage.data.datasets.svhn import svhn
from tutelage.data.source import LARGEST_IN_MEMORY, ArrayImages, convert_channels, join_arrays
from tutelage.errors import UserError
from tutelage.storage import cache_folder

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(f"thing_{number}" for number in range(100))


def write_idx(folder: Path) -> None:
    """Write what http://yann.lecun.com/exdb/mnist describes."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        images = struct.pack(">4i", 2051, count, 28, 28) + random_images(count, 28, 1).tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = struct.pack(">2i", 2049, count) + bytes(make_labels(count).tolist())
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def encode_planes(image: np.ndarray) -> bytes:
    """Return the bytes of an image (H, W, C), one channel after the other, each row by row."""
    return b"".join(image[..., colour].tobytes() for colour in range(image.shape[2]))


def write_cifar10(folder: Path) -> None:
    """Write the binary version of https://www.cs.toronto.edu/~kriz/cifar.html."""
    inner = folder / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for names, count in (([f"data_batch_{n}.bin" for n in range(1, 6)], TRAIN), (["test_batch.bin"], TEST)):
        records = [
            bytes([label]) + encode_planes(image)
            for image, label in zip(random_images(count, 32, 3), make_labels(count), strict=True)
        ]
        for number, name in enumerate(names):
            share = count // len(names)
            (inner / name).write_bytes(b"".join(records[number * share : (number + 1) * share]))
    (inner / "batches.meta.txt").write_text("\n".join(CIFAR10_CLASSES) + "\n\n")


def write_cifar100(folder: Path) -> None:
    inner = folder / "cifar-100-binary"
    inner.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("test", TEST)):
        records = [
            bytes([label // 5, label]) + encode_planes(image)
            for image, label in zip(random_images(count, 32, 3), make_labels(count, 100), strict=True)
        ]
        (inner / f"{part}.bin").write_bytes(b"".join(records))
    (inner / "fine_label_names.txt").write_text("\n".join(CIFAR100_CLASSES) + "\n")
    (inner / "coarse_label_names.txt").write_text("\n".join(f"kind_{number}" for number in range(20)) + "\n")


def write_svhn(folder: Path) -> None:
    """Write format 2 of http://ufldl.stanford.edu/housenumbers, where digit 0 has label 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", TRAIN), ("test", TEST)):
        labels = make_labels(count)
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        x = random_images(count, 32, 3).transpose(1, 2, 3, 0)
        savemat(folder / f"{part}_32x32.mat", {"X": x, "y": y}, do_compression=True)


def write_archive(folder: Path, inner: str, name: str) -> Path:
    """Write ``folder/inner`` to a .tar.gz in a new folder and return that folder."""
    packed = folder.parent / f"{folder.name}-packed"
    packed.mkdir()
    with tarfile.open(packed / name, "w:gz") as tar:
        tar.add(folder / inner, inner)
    return packed


Read = Callable[..., Source]
WRITERS: dict[str, tuple[Read, Callable[[Path], None], int, int]] = {
    "mnist": (mnist, write_idx, 28, 1),
    "fashion_mnist": (fashion_mnist, write_idx, 28, 1),
    "cifar10": (cifar10, write_cifar10, 32, 3),
    "cifar100": (cifar100, write_cifar100, 32, 3),
    "svhn": (svhn, write_svhn, 32, 3),
    "stl10": (stl10, write_stl10, 96, 3),
}
ARCHIVES = {
    "cifar10": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-binary", "cifar-100-binary.tar.gz"),
    "stl10": ("stl10_binary", "stl10_binary.tar.gz"),
}


def read_all_images(source: Source) -> np.ndarray:
    return np.stack([source.images[index] for index in range(len(source.images))])


def is_equal(first: Source, second: Source) -> bool:
    arrays = ("labels", "train", "test", "unlabelled")
    return (
        np.array_equal(read_all_images(first), read_all_images(second))
        and all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)
        and first.classes == second.classes
    )


@pytest.mark.parametrize("name", WRITERS)
def test_every_pixel_and_label_of_the_files_is_read(name, tmp_path):
    read, write, side, channels = WRITERS[name]
    write(tmp_path)
    source = read(str(tmp_path), side, channels)
    extra = [random_images(UNLABELLED, side, channels)] if name == "stl10" else []
    images = np.concatenate([random_images(TRAIN, side, channels), random_images(TEST, side, channels), *extra])
    assert (read_all_images(source) == images).all()
    classes = 100 if name == "cifar100" else 10
    assert source.labels.dtype == np.int64
    assert source.labels[: TRAIN + TEST].tolist() == [*make_labels(TRAIN, classes), *make_labels(TEST, classes)]
    assert (source.labels[TRAIN + TEST :] == UNKNOWN).all()
    assert source.train.tolist() == list(range(TRAIN))
    assert source.test.tolist() == list(range(TRAIN, TRAIN + TEST))
    assert source.unlabelled.tolist() == list(range(TRAIN + TEST, len(images)))
    assert len(source.val) == 0
    assert len(source.names) == len(source.labels) == len(source.images) == len(images)
    assert len(source.classes) == classes
    assert source.images[0].flags.writeable


def test_classes_have_the_names_in_the_files(tmp_path):
    for write in (write_cifar10, write_cifar100, write_stl10):
        write(tmp_path)
    assert cifar10(str(tmp_path), 32, 3).classes == CIFAR10_CLASSES
    assert cifar100(str(tmp_path), 32, 3).classes == CIFAR100_CLASSES
    assert stl10(str(tmp_path), 96, 3).classes == STL10_CLASSES


def read_by_torchvision(name: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, H, W, C) and labels with torchvision."""
    datasets = torchvision.datasets
    if name in {"mnist", "fashion_mnist"}:
        kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
        read = kind(folder, train=split == "train")
        return read.data.numpy()[..., None], read.targets.numpy()
    kind = {"svhn": datasets.SVHN, "stl10": datasets.STL10}[name]
    read = kind(folder, split=split)
    return read.data.transpose(0, 2, 3, 1), read.labels


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "svhn", "stl10"])
def test_torchvision_reads_the_same_from_the_same_files(name, tmp_path, monkeypatch):
    read, write, side, channels = WRITERS[name]
    inner = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}.get(name, "")
    write(tmp_path / inner)
    for file in (tmp_path / inner).glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    for kind in (torchvision.datasets.SVHN, torchvision.datasets.STL10):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    source = read(str(tmp_path), side, channels)
    for split, indices in (("train", source.train), ("test", source.test), ("unlabeled", source.unlabelled)):
        if len(indices):
            images, labels = read_by_torchvision(name, tmp_path, split)
            assert (read_all_images(source)[indices] == images).all()
            assert (source.labels[indices] == labels).all()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_may_be_in_torchvisions_folders_compressed_or_not(name, tmp_path):
    read = WRITERS[name][0]
    inner = {"mnist": MNIST, "fashion_mnist": FASHION_MNIST}[name].torchvision_folder
    write_idx(tmp_path / "here")
    write_idx(tmp_path / "there" / inner)
    expected = read(str(tmp_path / "here"), 28, 1)
    assert is_equal(expected, read(str(tmp_path / "there"), 28, 1))
    for file in (tmp_path / "here").glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert is_equal(expected, read(str(tmp_path / "here"), 28, 1))


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_root_may_be_the_archives_folder_the_unpacked_one_or_its_parent(name, tmp_path):
    read, write, side, channels = WRITERS[name]
    inner, archive = ARCHIVES[name]
    write(tmp_path / "made")
    parent = read(str(tmp_path / "made"), side, channels)
    assert is_equal(parent, read(str(tmp_path / "made" / inner), side, channels))
    packed = write_archive(tmp_path / "made", inner, archive)
    progress = []
    assert is_equal(parent, read(str(packed), side, channels, lambda *arguments: progress.append(arguments)))
    assert progress[0][0].startswith("unpacking ")
    (packed / archive).unlink()
    assert is_equal(parent, read(str(packed), side, channels))


def test_without_a_root_the_cache_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tutelage.data.datasets.fashion_mnist.DEBIAN_FOLDER", tmp_path / "nowhere")
    for name, (read, write, side, channels) in WRITERS.items():
        write(cache_folder(name))
        assert len(read(None, side, channels).train) == TRAIN


def test_without_a_root_or_a_cache_datasets_are_downloaded(tmp_path, monkeypatch):
    """A stub writes the files instead of downloading them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tutelage.data.datasets.fashion_mnist.DEBIAN_FOLDER", tmp_path / "nowhere")
    fetched = []

    def fetch(remote: Remote, folder: Path, title: str, on_progress) -> Path:
        fetched.append((title, remote.name))
        folder.mkdir(parents=True, exist_ok=True)
        write = WRITERS[folder.name][1]
        if folder.name not in ARCHIVES:
            write(folder)
        else:
            write(tmp_path / folder.name)
            packed = write_archive(tmp_path / folder.name, *ARCHIVES[folder.name])
            (packed / remote.name).rename(folder / remote.name)
        return folder / remote.name

    for module in ("download", "idx", "svhn"):
        monkeypatch.setattr(f"tutelage.data.datasets.{module}.fetch", fetch)
    for read, _, side, channels in WRITERS.values():
        assert len(read(None, side, channels).train) == TRAIN
    assert len(fetched) == len(set(fetched)) == 4 + 4 + 1 + 1 + 2 + 1
    assert {title for title, _ in fetched} == {"MNIST", "Fashion-MNIST", "CIFAR-10", "CIFAR-100", "SVHN", "STL-10"}


def test_a_failed_download_is_an_error_that_names_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("tutelage.data.datasets.fashion_mnist.DEBIAN_FOLDER", tmp_path / "nowhere")
    closed = tuple(Remote(f"http://127.0.0.1:9/{file.name}", file.md5, file.bytes) for file in FASHION_MNIST.files)
    monkeypatch.setattr("tutelage.data.datasets.fashion_mnist.FASHION_MNIST", replace(FASHION_MNIST, files=closed))
    with pytest.raises(UserError) as refused:
        fashion_mnist(None, 28, 1)
    message = str(refused.value)
    assert message.startswith("Fashion-MNIST: http://127.0.0.1:9/train-images-idx3-ubyte.gz cannot be fetched (")
    assert message.endswith("set data.root=FOLDER; or apt-get install dataset-fashion-mnist")
    assert "\n" not in message


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_without_the_dataset_is_an_error_that_names_the_expected_files(name, tmp_path):
    read = WRITERS[name][0]
    for root in (tmp_path, "/proc/nowhere"):
        with pytest.raises(UserError, match=r"data.root=.*: no [-\w]+ there \(looked for [-\w./ ]+\)") as refused:
            read(str(root), 32, 3)
        assert "\n" not in str(refused.value)


FILES = {
    "mnist": ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
    "cifar10": ["cifar-10-batches-bin/data_batch_3.bin", "cifar-10-batches-bin/test_batch.bin"],
    "cifar100": ["cifar-100-binary/train.bin"],
    "svhn": ["train_32x32.mat", "test_32x32.mat"],
    "stl10": ["stl10_binary/train_X.bin", "stl10_binary/test_y.bin", "stl10_binary/unlabeled_X.bin"],
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) * 2 // 3],
    "empty": lambda content: b"",
    "a page of a web server": lambda content: b"<html>not found</html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_a_damaged_file_is_an_error_that_names_it_or_its_folder(name, file, damage, tmp_path):
    read, write, side, channels = WRITERS[name]
    write(tmp_path)
    path = tmp_path / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError, match=r"; (fetch the files? again|remove the folder to unpack it again)$") as refused:
        read(str(tmp_path), side, channels)
    message = str(refused.value)
    assert "\n" not in message
    named = path.parent if path.name.endswith("_y.bin") else path  # files of labels have no header
    assert message.startswith(f"{named}: ")


MISSING = {
    "mnist": ["t10k-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"],
    "cifar10": ["cifar-10-batches-bin/data_batch_3.bin", "cifar-10-batches-bin/batches.meta.txt"],
    "cifar100": ["cifar-100-binary/test.bin", "cifar-100-binary/fine_label_names.txt"],
    "stl10": ["stl10_binary/test_y.bin", "stl10_binary/unlabeled_X.bin", "stl10_binary/class_names.txt"],
}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in MISSING.items() for file in files])
def test_a_missing_file_is_named(name, file, tmp_path):
    read, write, side, channels = WRITERS[name]
    write(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=r"cannot be read \(.*No such file or directory.*\)") as refused:
        read(str(tmp_path), side, channels)
    assert str(refused.value).startswith(f"{tmp_path / file}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack(">4i", 2051, 2, 3, 3) + bytes(18), None),
        (struct.pack(">4i", 2051, 2, 3, 3) + bytes(17), "its header announces 18 bytes, 17 follow"),
        (struct.pack(">4i", 2051, 2, 3, 3) + bytes(19), "its header announces 18 bytes, more follow"),
        (struct.pack(">2i", 2049, 18) + bytes(18), "it begins with 00000801"),
        (struct.pack(">4i", 0xD03, 2, 3, 3) + bytes(72), "it begins with 00000d03"),
        (struct.pack(">4i", 2051, -1, 3, 3), "its header announces 38,654,705,655 bytes, 1,073,741,824 are allowed"),
        (b"\0\0\x08\x03", "requires a buffer"),
    ],
)
def test_an_idx_files_header_must_fit_its_content(content, message, tmp_path):
    (tmp_path / "images").write_bytes(content)
    if message is None:
        assert read_idx(tmp_path / "images", 3).shape == (2, 3, 3)
        return
    with pytest.raises(UserError, match=f"{tmp_path / 'images'}: cannot be read .*{message}"):
        read_idx(tmp_path / "images", 3)


def test_labels_beyond_the_classes_are_an_error(tmp_path):
    write_cifar10(tmp_path)
    file = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    with pytest.raises(UserError, match="test has label 10, but there are 10 classes"):
        cifar10(str(tmp_path), 32, 3)
    write_stl10(tmp_path)
    file = tmp_path / "stl10_binary" / "train_y.bin"
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    with pytest.raises(UserError, match="train has label -1, but there are 10 classes"):
        stl10(str(tmp_path), 96, 3)


def test_another_number_of_labels_than_of_images_is_an_error(tmp_path):
    write_stl10(tmp_path)
    file = tmp_path / "stl10_binary" / "train_y.bin"
    file.write_bytes(file.read_bytes()[1:])
    with pytest.raises(UserError, match="train has 20 images and 19 labels"):
        stl10(str(tmp_path), 96, 3)


def test_a_matlab_file_of_something_else_is_an_error(tmp_path):
    write_svhn(tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3)), "y": np.ones((1, 1))})
    with pytest.raises(UserError, match=r"test_32x32.mat: X is float64 \(32, 32, 3\), not uint8 of 4 axes"):
        svhn(str(tmp_path), 32, 3)
    savemat(tmp_path / "test_32x32.mat", {"Z": np.zeros(3)})
    with pytest.raises(UserError, match=r"test_32x32.mat: cannot be read \('X'\)"):
        svhn(str(tmp_path), 32, 3)


def test_a_damaged_archive_is_an_error_and_leaves_no_files(tmp_path):
    (tmp_path / CIFAR10.remote.name).write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz: cannot be unpacked"):
        cifar10(str(tmp_path), 32, 3)
    assert not (tmp_path / CIFAR10.top_folder).exists()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [12, 40])
def test_every_dataset_gives_grey_and_colour_images_of_any_size(name, channels, size, tmp_path):
    read, write, side, native = WRITERS[name]
    write(tmp_path)
    images = read_all_images(read(str(tmp_path), size, channels))
    assert images.shape[1:] == (size, size, channels)
    assert images.dtype == np.uint8
    interpolation = cv2.INTER_AREA if size < side else cv2.INTER_LINEAR
    first = cv2.resize(random_images(TRAIN, side, native)[0], (size, size), interpolation=interpolation).reshape(
        size, size, native
    )
    if (native, channels) == (3, 1):
        first = cv2.cvtColor(first, cv2.COLOR_RGB2GRAY)[..., None]
    assert (images[0] == np.broadcast_to(first, (size, size, channels))).all()


def test_grey_is_the_luminance_of_red_green_and_blue():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]], dtype=np.uint8)
    assert convert_channels(colours, 1)[0, :, 0].tolist() == [76, 150, 29, 255, 0]  # 0.299, 0.587 and 0.114 of 255
    assert convert_channels(colours, 3) is colours
    many = np.stack([colours, colours[:, ::-1]])
    assert convert_channels(many, 1)[1, 0, :, 0].tolist() == [0, 255, 29, 150, 76]
    assert convert_channels(colours[..., :1], 3).tolist() == [[[v] * 3 for v in (255, 0, 0, 255, 0)]]


def test_arrays_one_behind_the_other_are_one_sequence():
    arrays = [random_images(3, 8, 3), random_images(0, 8, 3), random_images(5, 8, 3).transpose(0, 2, 1, 3)]
    images = ArrayImages(arrays, 8, 3)
    assert len(images) == 8
    assert (np.stack([images[index] for index in range(8)]) == np.concatenate(arrays)).all()
    for beyond in (-1, 8):
        with pytest.raises(IndexError):
            images[beyond]


def test_what_is_small_is_kept_in_memory_and_what_is_mapped_or_large_is_not(tmp_path):
    array = random_images(4, 8, 3)
    assert isinstance(join_arrays([array], 6, 1), np.ndarray)
    assert isinstance(join_arrays([np.broadcast_to(array, (4, 8, 8, 3))], 1 << 14, 3), ArrayImages)
    assert LARGEST_IN_MEMORY < 4 * (1 << 28) * 3
    array.tofile(tmp_path / "mapped")
    mapped = np.memmap(tmp_path / "mapped", dtype=np.uint8, mode="r", shape=array.shape).transpose(0, 2, 1, 3)
    lazy = join_arrays([array, mapped], 6, 1)
    assert isinstance(lazy, ArrayImages)
    eager = join_arrays([array, np.array(mapped)], 6, 1)
    assert (np.stack([lazy[index] for index in range(8)]) == eager).all()


def test_the_unlabelled_images_of_stl10_stay_on_the_disk(tmp_path):
    """The file is sparse and has the true size: reading it would take 2.8 GB and many seconds."""
    write_stl10(tmp_path)
    count = 100_000
    with (tmp_path / "stl10_binary" / "unlabeled_X.bin").open("r+b") as file:
        file.truncate(count * 96 * 96 * 3)
    bytes_before = resident()
    source = stl10(str(tmp_path), 96, 3)
    assert len(source.unlabelled) == count
    assert (source.images[TRAIN + TEST] == random_images(UNLABELLED, 96, 3)[0]).all()
    assert source.images[len(source.images) - 1].max() == 0
    assert resident() - bytes_before < 200_000_000


def resident() -> int:
    """Return the bytes of memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
