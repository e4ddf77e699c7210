"""Image files of every mode, folders, tables and lists, the scan before a run, Hugging Face's datasets."""

import os
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.configs import rgb_config
from helpers.images import write_images
from tutelage.config import DataConfig
from tutelage.data import UNKNOWN, fingerprint, split
from tutelage.data.datasets.huggingface import content_fingerprint, hugging_face
from tutelage.data.datasets.image_files import image_files
from tutelage.data.files import contents as contents_module
from tutelage.data.files import scan as scan_module
from tutelage.data.files import threads as threads_module
from tutelage.data.files.decoding import BadImage, check_image, read_pixels
from tutelage.data.files.folders import list_folder
from tutelage.data.files.names import sort_classes
from tutelage.data.files.tables import list_table
from tutelage.data.files.unlabelled import add_unlabelled
from tutelage.errors import UserError

WHITE, MAGENTA = (255, 255, 255), (255, 0, 255)
LIMIT = 10_000


def encode(image: Image.Image, kind: str, **options) -> BytesIO:
    file = BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def random_image(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).convert(mode)


def read_rgb(file, background=WHITE) -> np.ndarray:
    return read_pixels(file, 3, background, LIMIT)


def read_grey(file, background=WHITE) -> np.ndarray:
    return read_pixels(file, 1, background, LIMIT)[..., 0]


def test_grey_and_colour_files_are_read_as_stored_or_converted():
    assert (read_rgb(encode(random_image(), "PNG")) == np.asarray(random_image())).all()
    assert (read_grey(encode(random_image("L"), "PNG")) == np.asarray(random_image("L"))).all()
    assert (read_rgb(encode(random_image("L"), "PNG")) == np.asarray(random_image("L"))[..., None]).all()
    red, green, blue = np.asarray(random_image()).astype(float).transpose(2, 0, 1)
    assert (
        np.abs(read_grey(encode(random_image(), "PNG")) - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 1
    )  # ITU-R 601


def test_the_pixels_of_a_bilevel_image_are_0_and_255():
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert read_grey(encode(image, "PNG")).tolist() == [[255, 0, 255]]


def test_a_palette_is_resolved_also_with_a_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert read_rgb(encode(image, "PNG")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert read_rgb(encode(image, "PNG", transparency=0), MAGENTA).tolist() == [[[255, 0, 255], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_over_the_background(mode):
    colour = (200, 100, 50) if mode == "RGBA" else (90,)
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((255, 51, 0)):
        image.putpixel((x, 0), (*colour, alpha))
    full = np.array(colour if mode == "RGBA" else colour * 3)
    for background in (WHITE, MAGENTA, (0, 0, 0)):
        opaque, fifth, clear = read_rgb(encode(image, "PNG"), background)[0]
        assert (opaque == full).all()
        assert np.abs(fifth - (0.2 * full + 0.8 * np.array(background))).max() <= 1
        assert (clear == background).all()


def test_a_colour_declared_transparent_becomes_the_background():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert read_rgb(encode(image, "PNG", transparency=(1, 2, 3)), MAGENTA).tolist() == [[[255, 0, 255], [9, 9, 9]]]


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
@settings(max_examples=30)
def test_sixteen_bits_become_eight_by_their_range(values):
    wide = np.array([values], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        pixels = read_grey(encode(Image.fromarray(wide), kind))
        assert np.abs(pixels - wide / 257.0).max() <= 0.5


def test_sixteen_bit_colour_keeps_its_range():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)  # 16 bits, RGB
    rows = b"\0" + struct.pack(">6H", 0, 65535, 32768, 257, 514, 771)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(read_rgb(BytesIO(content))[0].astype(int) - [[0, 255, 128], [1, 2, 3]]).max() <= 1


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red: no cyan
    red = read_rgb(encode(image, "JPEG", quality=100))[4, 4]
    assert red[0] > 240
    assert red[1:].max() < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation):
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # bright top left
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_rgb(encode(stored, "PNG", exif=exif.tobytes()))
    assert pixels.shape == upright.shape
    assert (pixels == upright).all()


def test_a_damaged_exif_block_is_ignored():
    pixels = read_rgb(encode(random_image(), "PNG", exif=b"Exif\0\0nonsense"))
    assert (pixels == np.asarray(random_image())).all()


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (4, 4), (60 * n, 0, 0)) for n in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"save_all": True, "append_images": frames[1:]} | ({"lossless": True} if kind == "WEBP" else {})
        assert (read_rgb(encode(frames[0], kind, **options)) == 0).all()


def test_interlaced_files_are_read_whole():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    progressive = read_grey(encode(image, "JPEG", progressive=True, quality=100))
    assert np.abs(progressive.astype(int) - np.asarray(image)).max() <= 3
    interlaced = encode(image, "GIF", interlace=1)
    assert (read_grey(interlaced) == np.asarray(image)).all()


def without_palette(content: bytes) -> bytes:
    """Return a PNG without its PLTE chunk: length, name, colours, checksum."""
    start = content.index(b"PLTE") - 4
    return content[:start] + content[start + 12 + int.from_bytes(content[start : start + 4], "big") :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image, or not one of PNG, JPEG"),
        (b"not an image at all", "no image, or not one of PNG, JPEG"),
        (encode(random_image(), "PNG").getvalue()[:60], "truncated"),
        (encode(random_image(), "JPEG").getvalue()[:-40], "truncated"),
        (encode(Image.new("F", (2, 2)), "TIFF").getvalue(), "pixels of 32 bits have no fixed range"),
        (encode(Image.new("L", (200, 200)), "PNG").getvalue(), r"200 x 200 .* set data.max_pixels=40000"),
        (without_palette(encode(random_image("P"), "PNG").getvalue()), "its palette is missing"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "float", "bomb", "no palette"],
)
def test_a_file_without_readable_pixels_is_an_error_that_says_why(content, message):
    with pytest.raises(BadImage, match=message):
        read_rgb(BytesIO(content))
    assert re.search(message, check_image(content, LIMIT).reason)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF"])
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch, kind):
    from PIL import ImageFile

    def explode(*arguments):
        raise AssertionError("decoded")

    file = encode(Image.new("L", (3000, 3000)), kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", explode)
    with pytest.raises(BadImage, match="3000 x 3000"):
        read_rgb(file)


@pytest.mark.parametrize("kind", ["ICO", "EPS", "PDF"])
def test_formats_that_decode_or_run_code_when_opened_are_refused(kind):
    with pytest.raises(BadImage, match="no image, or not one of"):
        read_rgb(encode(Image.new("RGB", (64, 64)), kind))


def test_a_transparent_value_of_sixteen_bits_becomes_the_background():
    wide = np.array([[0, 65535, 257]], dtype=np.uint16)
    file = encode(Image.fromarray(wide), "PNG", transparency=0)
    assert read_rgb(file, MAGENTA).tolist() == [[[255, 0, 255], [255, 255, 255], [1, 1, 1]]]


def test_a_file_that_cannot_be_opened_is_not_reported_as_a_bad_image(tmp_path):
    with pytest.raises(UserError, match="cannot be opened .No such file or directory."):
        read_rgb(tmp_path / "nowhere.png")


@given(st.binary(max_size=60))
@settings(max_examples=60)
def test_the_pixels_are_read_whatever_the_exif_block_holds(block):
    pixels = read_rgb(encode(random_image(), "JPEG", quality=100, exif=b"Exif\0\0MM\0*\0\0\0\x08" + block))
    assert sorted(pixels.shape) == [3, 6, 9]


def write_folder_with_bad_files(top: Path) -> Path:
    for part, count in (("train", 4), ("test", 2)):
        for label in ("cat", "dog"):
            write_images(top / part / label, count)
    (top / "train" / "cat" / "1.png").write_bytes(b"not an image")
    (top / "train" / "dog" / "2.png").write_bytes((top / "train" / "dog" / "3.png").read_bytes()[:50])
    return top


def test_unreadable_files_end_a_run_with_their_list(tmp_path, capsys):
    listing = list_folder(str(write_folder_with_bad_files(tmp_path)))
    with pytest.raises(UserError, match=r"2 images of 12 cannot be read .* data.on_bad_image=skip"):
        image_files(listing, rgb_config())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{tmp_path}/train/cat/1.png: no image, or not one of")
    assert "dog/2.png" in lines[1]


def test_unreadable_files_are_left_out_and_counted_on_request(tmp_path):
    listing = list_folder(str(write_folder_with_bad_files(tmp_path)))
    source = image_files(listing, rgb_config(on_bad_image="skip"))
    assert sorted(source.left_out) == ["train/cat/1.png", "train/dog/2.png"]
    assert len(source.train) == 6
    assert all(source.images[i].shape == (16, 16, 3) for i in range(len(source.images)))


def test_a_class_whose_files_are_all_bad_is_an_error(tmp_path):
    for label in ("cat", "dog"):
        write_images(tmp_path / "train" / label, 2)
    for file in (tmp_path / "train" / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="class 'cat' has no readable image"):
        image_files(list_folder(str(tmp_path)), rgb_config(on_bad_image="skip"))


def test_a_second_scan_checks_only_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_module, "SETTLED_NS", -1)
    write_folder_with_bad_files(tmp_path)
    read, decoded, read_file = [], [], scan_module._read_file
    monkeypatch.setattr(scan_module, "_read_file", lambda path: read.append(path) or read_file(path))
    monkeypatch.setattr(
        scan_module, "check_image", lambda content, limit: decoded.append(content) or check_image(content, limit)
    )

    def scan(limit=LIMIT):
        read.clear()
        decoded.clear()
        config = rgb_config(on_bad_image="skip", max_pixels=limit)
        return image_files(list_folder(str(tmp_path)), config).left_out

    assert len(scan()) == 2
    assert len(read) == len(decoded) == 12
    assert len(scan()) == 2
    assert len(read) == 2  # bad files are tried again
    for number, file in enumerate(("cat/1.png", "dog/2.png")):
        Image.new("RGB", (5, 5), (number, 0, 0)).save(tmp_path / "train" / file)
    os.utime(tmp_path / "train" / "cat" / "0.png", ns=(1, 1))
    assert not scan()
    assert len(read) == 3
    assert len(decoded) == 2  # a known content is not decoded again
    assert len(scan(limit=20 * 14 - 1)) == 10  # the smaller limit refuses all but the new ones
    assert len(read) == 10
    assert not scan()
    assert not read  # what was known is not forgotten


def test_a_damaged_scan_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents_module, "SETTLED_NS", -1)
    for label in ("cat", "dog"):
        write_images(tmp_path / "data" / label, 2)
    listing = list_folder(str(tmp_path / "data"))
    image_files(listing, rgb_config())
    caches = [*(tmp_path / "cache" / "tutelage" / "contents").rglob("*.npy")]
    assert len(caches) == 2  # of the files, and of the list
    for content in (b"", b"junk", caches[0].read_bytes()[:100]):
        for cache in caches:
            cache.write_bytes(content)
        image_files(listing, rgb_config())


def test_an_interrupted_scan_keeps_what_it_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(threads_module, "FILES_A_TASK", 1)
    monkeypatch.setattr(contents_module, "SETTLED_NS", -1)
    for label in ("cat", "dog"):
        write_images(tmp_path / label, 20)
    listing = list_folder(str(tmp_path))

    def stop(part, fraction):
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_files(listing, rgb_config(), stop)
    parts = []
    image_files(listing, rgb_config(), lambda part, fraction: parts.append(part))
    assert 0 < int(parts[0].removeprefix("checking ").removesuffix(" images")) < 40


def test_hidden_files_are_ignored_and_linked_folders_are_followed(tmp_path):
    for label in ("cat", "dog"):
        write_images(tmp_path / "elsewhere" / label, 3)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / label).symlink_to(tmp_path / "elsewhere" / label)
    (tmp_path / "elsewhere" / "cat" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "elsewhere" / "cat" / "back").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "data" / ".cache").mkdir()
    assert len(list_folder(str(tmp_path / "data")).entries) == 6


def test_imagenets_val_is_the_test_set(tmp_path):
    for part, count in (("train", 5), ("val", 2)):
        for label in ("n01440764", "n01443537"):
            write_images(tmp_path / part / label, count)
    source = image_files(list_folder(str(tmp_path), val_is_test=True), rgb_config())
    assert (len(source.train), len(source.test), len(source.val)) == (10, 4, 0)


def test_folders_named_after_the_test_set_are_further_test_sets(tmp_path):
    for part, count in (("train", 5), ("test", 2), ("test-night", 3), ("test-sketch", 1)):
        for label in ("cat", "dog"):
            write_images(tmp_path / part / label, count)
    source = image_files(list_folder(str(tmp_path)), rgb_config())
    assert {name: len(part) for name, part in source.further_tests.items()} == {"night": 6, "sketch": 2}
    assert (len(source.train), len(source.test)) == (10, 4)
    assert all(source.names[i].startswith("test-night/") for i in source.further_tests["night"])
    splits = split(source, rgb_config(limit=4))
    assert {name: len(part) for name, part in splits.further_tests.items()} == {"night": 4, "sketch": 2}
    assert not set(splits.pool) & set(np.concatenate(list(source.further_tests.values())))


def write_table(top: Path, rows: list[tuple], columns=("path", "label", "split"), kind: str = "csv") -> str:
    top.mkdir(parents=True, exist_ok=True)
    for name, *_ in rows:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (len(name) * 3, 0, 0)).save(top / name)
    file = top / f"list.{kind}"
    if kind == "csv":
        lines = [",".join("" if value is None else str(value) for value in row) for row in [columns, *rows]]
        file.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.table({c: [row[i] for row in rows] for i, c in enumerate(columns)}), file)
    return str(file)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_paths_and_labels_is_read(tmp_path, kind):
    rows = [(f"a/{n}.png", "cat" if n % 2 else "dog", "train") for n in range(6)]
    rows += [("v.png", "cat", "val"), ("t.png", "dog", "test"), ("u.png", None, "unlabelled"), ("w.png", None, "train")]
    source = image_files(list_table(write_table(tmp_path, rows, kind=kind)), rgb_config())
    assert source.classes == ("cat", "dog")
    assert [len(p) for p in (source.train, source.val, source.test, source.unlabelled)] == [6, 1, 1, 2]
    assert source.names[int(source.test[0])] == "t.png"


def test_numeric_labels_keep_their_order_and_a_fifth_of_the_images_is_the_test_set(tmp_path):
    rows = [(f"{n}.png", n % 12) for n in range(120)]
    for kind in ("csv", "parquet"):
        source = image_files(list_table(write_table(tmp_path / kind, rows, ("path", "label"), kind)), rgb_config())
        assert source.classes == tuple(map(str, range(12)))
        splits = split(source, rgb_config(validation="none"))
        assert (len(splits.labelled), len(splits.test)) == (96, 24)


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (("file", "label"), [("a.png", "x")], "no column 'path' .there are file, label"),
        (("path", "class"), [("a.png", "x")], "no column 'label'"),
        (("path", "label"), [("a.png", "x"), ("a.png", "y")], "paths that are listed twice: a.png"),
        (("path", "label"), [("a.png", "x"), ("b.png", "x")], "found 1 class .x. to learn from"),
        (("path", "label", "split"), [("a.png", "x", "fold1"), ("b.png", "y", "train")], "split 'fold1'; allowed are"),
        (
            ("path", "label", "split"),
            [("a.png", "x", "train"), ("b.png", "y", "train"), ("c.png", "z", "test")],
            "no training row has: z",
        ),
    ],
)
def test_an_invalid_table_is_an_error(tmp_path, columns, rows, message):
    with pytest.raises(UserError, match=message):
        list_table(write_table(tmp_path, rows, columns))


def test_files_of_a_table_that_do_not_exist_are_named(tmp_path):
    file = write_table(tmp_path, [("a.png", "x"), ("b.png", "y")], ("path", "label"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 files do not exist .paths are relative to .*: b.png"):
        list_table(file)
    (tmp_path / "list.csv").write_bytes(b"\xff\xfd\0,\0\n\xff,\0\n")
    with pytest.raises(UserError, match=r"list.csv: no column 'path'"):
        list_table(file)
    with pytest.raises(UserError, match="nothing.csv: no such file"):
        list_table(str(tmp_path / "nothing.csv"))
    with pytest.raises(UserError, match=r"neither a .csv nor a .parquet"):
        list_table(str(tmp_path))


def test_unlabelled_images_come_from_a_folder_or_a_list(tmp_path):
    for label in ("cat", "dog"):
        write_images(tmp_path / "data" / "train" / label, 3)
    write_images(tmp_path / "more", 4)
    (tmp_path / "list.txt").write_text("more/0.png\nmore/1.png\n\nmore/../more/0.png\n more/0.png\n")
    (tmp_path / "list.csv").write_text("path\nmore/2.png\n")
    for name, count in (("more", 4), ("list.txt", 2), ("list.csv", 1)):
        listing = add_unlabelled(list_folder(str(tmp_path / "data")), str(tmp_path / name))
        source = image_files(listing, rgb_config())
        assert len(source.unlabelled) == count
        assert (source.labels[source.unlabelled] == UNKNOWN).all()
        assert ("2 of its paths lead to an image that an earlier one" in "".join(source.notes)) == (name == "list.txt")
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        add_unlabelled(list_folder(str(tmp_path / "data")), str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="neither a folder, nor a list"):
        add_unlabelled(list_folder(str(tmp_path / "data")), str(tmp_path / "data" / "train" / "cat" / "0.png"))


def test_images_that_are_labelled_or_tested_on_do_not_enter_the_pool(tmp_path):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            write_images(tmp_path / part / label, 3)
    listing = add_unlabelled(list_folder(str(tmp_path)), str(tmp_path / "test"))
    assert not [entry for entry in listing.entries if entry.part == "unlabelled"]
    assert "6 of its images are in the data already" in listing.notes[0]


def test_a_dataset_of_hugging_face_is_read_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets") if not os.environ.get("CI") else __import__("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "eel"])}
    )
    images = [Image.new("RGBA", (20, 20), (10 * n, 0, 0, 255 * (n % 2))) for n in range(9)]
    whole = datasets.Dataset.from_dict({"picture": images, "label": [0, 1, 2] * 3}, features=features)
    unknown = datasets.Dataset.from_dict({"picture": images[:2], "label": [-1, -1]}, features=features)
    parts = {"train": whole, "Dev": whole.select([0]), "testing": whole.select([1, 2])}
    parts |= {"unsupervised": unknown, "test_extra": unknown}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "hf"))
    config = rgb_config(root=str(tmp_path / "hf"), background=[0, 255, 0])
    source = hugging_face(config)
    assert source.classes == ("cat", "dog", "eel")
    assert source.notes == (f"data.root={tmp_path}/hf: splits that are no part of the data are left out: test_extra",)
    assert [len(p) for p in (source.train, source.val, source.test, source.unlabelled)] == [9, 1, 2, 2]
    assert source.images[4][8, 8].tolist() == [0, 255, 0]
    assert source.images[5][8, 8].tolist() == [50, 0, 0]
    assert source.labels[:4].tolist() == [0, 1, 2, 0]
    assert content_fingerprint(config) == content_fingerprint(config)
    datasets.DatasetDict({"train": unknown, "val": unknown, "dev": unknown}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UserError, match="File name too long"):
        hugging_face(rgb_config(root="x" * 256))
    with pytest.raises(UserError, match="splits val and dev are the same part; join them"):
        hugging_face(rgb_config(root=str(tmp_path / "two")))
    with pytest.raises(UserError, match="is no folder, and the hub has no such dataset"):
        hugging_face(rgb_config(root=str(tmp_path / "none")))


def test_labels_that_other_programs_read_as_missing_stay_labels(tmp_path):
    rows = [(f"{n}.png", ("NA", "DE", "null")[n % 3]) for n in range(30)]
    source = image_files(list_table(write_table(tmp_path, rows, ("path", "label"))), rgb_config())
    assert source.classes == ("DE", "NA", "null")
    assert not len(source.unlabelled)


def test_numbers_written_in_two_ways_keep_one_order(tmp_path):
    rows = [(f"{n}.png", ("1", "01", "2")[n % 3]) for n in range(30)]
    assert list_table(write_table(tmp_path, rows, ("path", "label"))).classes == ("01", "1", "2")
    long, numbers = "9" * 5000, ["10", "2", "007", "0", "12", "8", "\u0664"]  # the last is an Arabic 4
    assert sort_classes([*numbers, long, "1" + long]) == (*sorted(numbers, key=int), long, "1" + long)


def test_the_label_of_an_unlabelled_image_is_only_used_for_measuring(tmp_path):
    rows = [(f"{n}.png", "ab"[n % 2], "train") for n in range(8)]
    rows += [("t.png", "a", "test"), ("u.png", "b", "unlabelled"), ("v.png", "zebra", "unlabelled")]
    source = image_files(list_table(write_table(tmp_path, rows)), rgb_config())
    assert source.labels[source.unlabelled].tolist() == [1, UNKNOWN]
    assert source.classes == ("a", "b")


def test_one_path_written_in_two_ways_is_one_image(tmp_path):
    file = write_table(tmp_path, [("a.png", "x"), ("b.png", "y"), ("./a.png", "x")], ("path", "label"))
    with pytest.raises(UserError, match=r"listed twice: .*a.png"):
        list_table(file)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda top: write_images(top / "val", 3), "val: 3 images outside class folders: 0.png, 1.png, 2.png"),
        (lambda top: (top / "test").symlink_to(top / "train"), "train/ and test/ are the same folder"),
        (
            lambda top: (top / "train" / "cat" / "x.png").symlink_to("nowhere"),
            "x.png: cannot be read .a link to nothing",
        ),
    ],
)
def test_a_misleading_folder_layout_is_an_error(tmp_path, make, message):
    for label in ("cat", "dog"):
        write_images(tmp_path / "train" / label, 3)
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        list_folder(str(tmp_path), val_is_test=True)


def test_val_and_test_folders_without_train_are_an_error(tmp_path):
    for part in ("val", "test"):
        write_images(tmp_path / part / "cat", 2)
    with pytest.raises(UserError, match="val/ and test/, but no train/"):
        list_folder(str(tmp_path))


def test_left_out_images_enter_the_fingerprint(tmp_path):
    write_folder_with_bad_files(tmp_path)
    config = DataConfig.model_validate(
        rgb_config(root=str(tmp_path), on_bad_image="skip").model_dump() | {"_target_": "tutelage.data.ImageFolder"}
    )
    first = fingerprint(config)
    bad = tmp_path / "train" / "cat" / "1.png"
    good = tmp_path / "train" / "cat" / "0.png"
    bad.write_bytes(good.read_bytes())
    assert fingerprint(config) != first


def test_hugging_faces_bad_images_and_missing_labels(tmp_path, capsys):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    whole = datasets.Dataset.from_dict(
        {"image": [Image.new("L", (8, 8))] * 23 + [None], "label": [*range(11), *range(11), None, 3]}, features=features
    )
    whole.save_to_disk(str(tmp_path / "hf"))
    capsys.readouterr()  # the library's own bar, unless it was switched off before
    with pytest.raises(UserError, match="1 image of 24 cannot be read"):
        hugging_face(rgb_config(root=str(tmp_path / "hf")))
    assert capsys.readouterr().err.startswith("image 23: no image")
    source = hugging_face(rgb_config(root=str(tmp_path / "hf"), on_bad_image="skip"))
    assert source.classes == tuple(map(str, range(11)))
    assert list(source.left_out) == ["23"]
    assert source.unlabelled.tolist() == [22]
    assert 23 not in {*source.train, *source.test}
