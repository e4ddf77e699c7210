"""What identifies data is its content: hashes of files, shards and rows, and the cache by which they are read once."""

import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.configs import rgb_config
from helpers.images import random_images
from tutelage.config import DataConfig
from tutelage.data import fingerprint
from tutelage.data.datasets.image_files import LISTINGS, image_files
from tutelage.data.files import contents, scan
from tutelage.data.files.contents import Scope, read_contents
from tutelage.data.files.decoding import Check, check_image, read_pixels
from tutelage.data.files.wide import describe_range
from tutelage.data.shards.pools import Shard
from tutelage.data.shards.validators import with_validators
from tutelage.runs.identity import NOT_IN_DATA

WHITE, LIMIT = (255, 255, 255), 10_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own, which remembers files that have only just been written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    return tmp_path / "cache" / "tutelage" / "contents"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The paths of the files that are read."""
    paths, read_file = [], scan._read_file
    monkeypatch.setattr(scan, "_read_file", lambda path: paths.append(path) or read_file(path))
    return paths


def folder_config(root: Path, **changes) -> DataConfig:
    return rgb_config(_target_="tutelage.data.ImageFolder", root=str(root), **changes)


def write_folder(top: Path, count: int = 6, seed: int = 0, kind: str = "bmp") -> Path:
    """Write ``count`` different pictures of equal size into each of two classes."""
    pictures = random_images(2 * count + 100 * seed, 8, 3)[100 * seed :]
    for number, picture in enumerate(pictures):
        folder = top / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02}.{kind}")
    return top


def test_pictures_replaced_by_others_of_equal_size_and_time_make_another_run(tmp_path):
    files = sorted(write_folder(tmp_path / "data").rglob("*.bmp"))
    first, states = fingerprint(folder_config(tmp_path / "data")), [file.stat() for file in files]
    write_folder(tmp_path / "data", seed=1)
    for file, state in zip(files, states, strict=True):
        assert file.stat().st_size == state.st_size
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint(folder_config(tmp_path / "data")) != first


def test_a_table_whose_pictures_are_exchanged_makes_another_run(tmp_path):
    write_folder(tmp_path)
    names = [f"{label}/{number:02}.bmp" for number, label in enumerate(["cat", "dog"] * 6)]
    rows = "\n".join(f"{name},{name[:3]}" for name in names)
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}\n")
    config = rgb_config(_target_="tutelage.data.Table", root=str(tmp_path / "list.csv"))
    first = fingerprint(config)
    (tmp_path / names[0]).rename(tmp_path / "x")
    (tmp_path / names[1]).rename(tmp_path / names[0])
    (tmp_path / "x").rename(tmp_path / names[1])
    assert fingerprint(config) != first


def test_times_and_the_place_of_the_files_are_not_part_of_the_identity(tmp_path, read):
    first = fingerprint(folder_config(write_folder(tmp_path / "data")))
    for file in (tmp_path / "data").rglob("*.bmp"):
        os.utime(file, ns=(1, 1))
    read.clear()
    assert fingerprint(folder_config(tmp_path / "data")) == first
    assert len(read) == 12
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert fingerprint(folder_config(tmp_path / "elsewhere")) == first


def test_an_unchanged_folder_is_not_read_for_its_fingerprint_nor_for_its_run(tmp_path, read):
    config = folder_config(write_folder(tmp_path / "data"))
    first = fingerprint(config)
    assert sorted(read) == sorted(map(str, (tmp_path / "data").rglob("*.bmp")))  # each once
    for file in (tmp_path / "data").rglob("*.bmp"):
        os.utime(file, (4e9, 4e9))  # in the future
    assert fingerprint(config) == first
    read.clear()
    assert fingerprint(config) == first
    image_files(LISTINGS["ImageFolder"](config), config)
    assert not read


def test_a_pool_is_read_once_under_any_root_and_is_remembered_by_runs_without_it(tmp_path, read):
    pool, copy, roots = tmp_path / "pool", tmp_path / "copy", [tmp_path / "first", tmp_path / "second"]
    for number, top in enumerate((pool, *roots)):
        write_folder(top, (50, 3, 4)[number], seed=number)
    (roots[0] / "cat" / "bad.bmp").write_bytes(b"no image")
    changes = {"unlabelled": str(pool), "on_bad_image": "skip"}
    first = fingerprint(folder_config(roots[0], **changes))
    fingerprint(folder_config(roots[0], on_bad_image="skip"))
    read.clear()
    assert fingerprint(folder_config(roots[0], **changes)) == first
    assert read == [str(roots[0] / "cat" / "bad.bmp")]  # a broken file may have been repaired
    read.clear()
    fingerprint(folder_config(roots[1], **changes))
    assert len(read) == 8
    shutil.copytree(pool, copy)
    read.clear()
    assert fingerprint(folder_config(roots[0], **changes | {"unlabelled": str(copy)})) == first
    assert len(read) == 1 + contents.DRAWN


def test_files_that_change_while_others_are_read_are_not_remembered(monkeypatch):
    monkeypatch.setattr(contents, "SETTLED_NS", 10_000_000)
    read = []

    def examine(number, tick, find_check):
        time.sleep(0.02)
        read.append(number)
        return bytes([1] * 32), Check("", 1)

    for _ in range(2):
        scope = Scope("here", ["new", "old"], np.array([time.time_ns(), 0]), np.ones(2), 1, lambda count: f"{count}")
        read_contents(scope, examine, lambda *report: None)
    assert read == [0, 1, 0]


def test_files_that_were_written_just_now_are_read_again(tmp_path, read, monkeypatch, cache):
    monkeypatch.setattr(contents, "SETTLED_NS", 2_000_000_000)
    config = folder_config(write_folder(tmp_path / "data"))
    first = fingerprint(config)
    assert fingerprint(config) == first
    assert len(read) == 24
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, read, monkeypatch):
    config = folder_config(write_folder(tmp_path / "data"))
    first = fingerprint(config)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    read.clear()
    assert fingerprint(config) == first
    assert fingerprint(config) == first
    assert len(read) == 24


def test_long_work_is_saved_before_it_ends(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(contents, "SECONDS_BETWEEN_SAVES", 0.0)
    saved = []

    def examine(number, tick, find_check):
        return (1 + number).to_bytes(32, "little"), Check("", 1)

    scope = Scope("here", list(map(str, range(200))), np.zeros(200), np.ones(200), 1, lambda count: f"{count}")
    facts, reasons = read_contents(scope, examine, lambda *report: saved.append(len([*cache.glob("*.npy")])))
    assert saved[0] == 1
    assert [int.from_bytes(content, "little") for content in facts["content"].tolist()] == list(range(1, 201))
    assert not reasons


@pytest.mark.parametrize("change", ["none", "one", "all", "list"])
def test_a_copy_is_recognised_by_its_list_and_64_files_drawn_at_random(tmp_path, read, change):
    original = write_folder(tmp_path / "data", 50)
    first = fingerprint(folder_config(original))
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)  # keeps times to the nanosecond
    changed = {"none": [], "one": ["cat/00.bmp"], "all": None, "list": ["dog/01.bmp"]}[change]
    for file in sorted(copy.rglob("*.bmp")) if changed is None else [copy / name for name in changed]:
        state, content = file.stat(), bytearray(file.read_bytes())
        content[-4] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + (change == "list")))
    read.clear()
    is_equal = fingerprint(folder_config(copy)) == first
    if change == "none":
        assert (is_equal, len(read)) == (True, contents.DRAWN)
    elif change == "one":  # 64 of 100 files are drawn: either it is among them, or it is not seen
        assert is_equal == (str(copy / "cat/00.bmp") not in read)
        assert len(read) <= contents.DRAWN + 100
    else:
        assert not is_equal
        assert set(read) == {str(file) for file in copy.rglob("*.bmp")}


def test_a_folder_that_is_known_is_never_taken_for_a_copy(tmp_path, read):
    root = write_folder(tmp_path / "data", 50)
    first = fingerprint(folder_config(root))
    for file in root.rglob("*.bmp"):
        file.chmod(0o600)
    read.clear()
    assert fingerprint(folder_config(root)) == first
    assert len(read) == 100


def test_the_files_of_a_copy_are_drawn_anew_whatever_the_seeds(tmp_path, read):
    original = write_folder(tmp_path / "data", 50)
    fingerprint(folder_config(original))
    drawn = set()
    for name in ("first", "second", "third"):
        shutil.copytree(original, tmp_path / name)
        random.seed(0)
        np.random.seed(0)
        read.clear()
        fingerprint(folder_config(tmp_path / name))
        drawn.add(tuple(sorted(path.removeprefix(str(tmp_path / name)) for path in read)))
    assert len(drawn) == 3  # of 64 out of 100: by chance once in 10^26


def test_only_some_lists_are_remembered(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(contents, "MAX_LISTS", 2)
    for number in range(4):
        fingerprint(folder_config(write_folder(tmp_path / f"data{number}", 2 + number)))
    assert len([*(cache / "lists").iterdir()]) == 2


def test_two_processes_may_scan_one_folder_at_once(tmp_path):
    config, results = folder_config(write_folder(tmp_path / "data", 40)), []
    threads = [threading.Thread(target=lambda: results.append(fingerprint(config))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert len(set(results)) == 1


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A server that answers each request with the headers in its attribute ``headers``; with an error if it is None."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            headers = self.server.headers
            if self.path == "/moved.tar":
                self.send_response(302)
                headers = {"Location": "/0.tar"}
            else:
                self.send_response(405 if headers is None else 200)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *arguments) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_shard_on_the_network_is_known_by_what_its_server_says_of_it(tmp_path, server, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    shard = Shard("0.tar", f"http://127.0.0.1:{server.server_port}/0.tar")

    def state() -> tuple:
        (known,) = with_validators([shard], tmp_path)
        return known.state

    server.headers = None
    assert state() == ()  # the URL alone
    server.headers = {"Last-Modified": "Sat, 28 Nov 2026 09:00:00 GMT", "Content-Length": "7"}
    assert state() == ("Sat, 28 Nov 2026 09:00:00 GMT 7",)
    server.headers = {"Content-Length": "7"}
    assert state() == ("Sat, 28 Nov 2026 09:00:00 GMT 7",)  # what was said last
    server.headers = {"ETag": '"1"', "Last-Modified": "Sat, 28 Nov 2026 09:00:00 GMT", "Content-Length": "7"}
    assert state() == ('"1"',)
    server.headers = None
    assert state() == ('"1"',)
    server.headers = {"ETag": '"2"'}
    (moved,) = with_validators([Shard("0.tar", shard.location.replace("0.tar", "moved.tar"))], tmp_path)
    assert moved.state == ('"2"',)
    local = Shard("0.tar", "/0.tar", (1, 2, 3, 4))
    assert with_validators([local], tmp_path) == [local]
    assert "127.0.0.1" not in (tmp_path / "validators.json").read_text()  # a URL may contain a password
    with pytest.raises(KeyboardInterrupt):
        with_validators([shard], tmp_path, Mock(side_effect=KeyboardInterrupt))


def test_a_server_that_is_not_there_is_asked_once(tmp_path, server):
    port = server.server_port
    server.server_close()
    shards = [Shard(f"{n}.tar", f"http://127.0.0.1:{port}/{n}.tar") for n in range(3)]
    started = time.monotonic()
    assert list(with_validators(shards, tmp_path)) == shards
    assert time.monotonic() - started < 5


def save_hugging_face(top: Path, pictures: list[Image.Image], labels: list[int]) -> DataConfig:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": pictures, "label": labels}
    parts = {"train": datasets.Dataset.from_dict(rows, features=features)}
    datasets.DatasetDict(parts).save_to_disk(str(top))
    return rgb_config(_target_="tutelage.data.HuggingFace", root=str(top))


def test_a_dataset_of_hugging_face_is_identified_by_its_images_and_labels(tmp_path, monkeypatch):
    pictures = [Image.fromarray(picture) for picture in random_images(6, 8, 3)]
    first = save_hugging_face(tmp_path / "first", pictures, [0, 1] * 3)
    same = save_hugging_face(tmp_path / "same", pictures, [0, 1] * 3)
    labels = save_hugging_face(tmp_path / "labels", pictures, [0, 1, 0, 1, 1, 0])
    images = save_hugging_face(tmp_path / "images", [*pictures[1:], pictures[0]], [0, 1] * 3)
    expected = fingerprint(first)
    assert fingerprint(same) == expected
    assert len({expected, fingerprint(labels), fingerprint(images)}) == 3
    monkeypatch.setattr(
        "tutelage.data.datasets.huggingface.examine_image", lambda *arguments: pytest.fail("an image is read again")
    )
    assert fingerprint(first) == expected


def encode_wide(values: np.ndarray, kind: str) -> bytes:
    """Return an image file of 16-bit values, grey (H, W) or RGB (H, W, 3), as OpenCV writes it."""
    is_grey = values.ndim == 2
    _, content = cv2.imencode(kind, values if is_grey else cv2.cvtColor(values, cv2.COLOR_RGB2BGR))
    return content.tobytes()


WIDE_KINDS = [(".png", True), (".png", False), (".tiff", True), (".tiff", False), (".pgm", True), (".ppm", False)]


@pytest.mark.parametrize(("kind", "is_grey"), WIDE_KINDS)
def test_the_scan_finds_the_largest_value_of_16_bits(kind, is_grey):
    values = np.random.default_rng(0).integers(0, 4096, (5, 7) if is_grey else (5, 7, 3), dtype=np.uint16)
    assert check_image(encode_wide(values, kind), LIMIT) == ("", 35, int(values.max()))
    narrow = encode_wide((values >> 4).astype(np.uint8), kind)
    assert check_image(narrow, LIMIT) == ("", 35, 0)


@settings(max_examples=20)
@given(st.sampled_from(WIDE_KINDS), st.integers(1, 65534), st.integers(0, 99))
def test_white_spreads_16_bit_values_over_the_whole_range(kind_and_grey, white, seed):
    kind, is_grey = kind_and_grey
    values = np.random.default_rng(seed).integers(0, 65536, (3, 4) if is_grey else (3, 4, 3), dtype=np.uint16)
    pixels = read_pixels(BytesIO(encode_wide(values, kind)), 3, WHITE, LIMIT, white)
    expected = values.clip(0, white) * 255.0 / white
    assert np.abs(pixels - (expected[..., None] if is_grey else expected)).max() <= 0.5


def test_without_white_each_16_bit_value_becomes_the_nearest_of_8_bits():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read_pixels(BytesIO(encode_wide(values, ".png")), 1, WHITE, 65536)[..., 0]
    assert (pixels == np.round(values / 257.0)).all()


def test_white_leaves_8_bit_pictures_and_alpha_alone():
    picture = Image.fromarray(random_images(1, 8, 3)[0])
    file = BytesIO()
    picture.save(file, "PNG")
    assert (read_pixels(file, 3, WHITE, LIMIT, 4095) == np.asarray(picture)).all()
    half = np.full((1, 1, 4), 32768, dtype=np.uint16)
    half[..., :3] = 0
    _, content = cv2.imencode(".png", half)
    plain = encode_tiff(half, 2, 2)
    assert (read_pixels(BytesIO(plain), 3, WHITE, LIMIT, 4095) == 127).all()
    assert np.abs(read_pixels(BytesIO(content.tobytes()), 3, WHITE, LIMIT, 4095).astype(int) - 127).max() <= 1


def encode_tiff(values: np.ndarray, photometric: int, extra: int | None) -> bytes:
    """Return a TIFF of 16-bit values (H, W, 4), as TIFF 6.0 lays it out; ``extra`` says what the fourth is."""
    height, width, samples = values.shape
    tags = {256: width, 257: height, 258: 0, 259: 1, 262: photometric, 273: 0, 277: samples, 278: height, 279: 0}
    tags |= {} if extra is None else {338: extra}
    bits_at = 8 + 2 + 12 * len(tags) + 4  # after the header, the number of tags, the tags, and the end of their list
    tags |= {258: bits_at, 273: bits_at + 2 * samples, 279: values.nbytes}
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, value in tags.items():
        head += struct.pack("<HHII", tag, 3 if tag in {258, 338} else 4, samples if tag == 258 else 1, value)
    return head + bytes(4) + struct.pack(f"<{samples}H", *[16] * samples) + values.astype("<u2").tobytes()


@pytest.mark.parametrize(("photometric", "extra"), [(2, 0), (2, 1), (5, None)])  # RGB and pad; premultiplied; CMYK
def test_white_leaves_alone_what_is_neither_colours_nor_plain_alpha(photometric, extra, capfd):
    values = np.random.default_rng(0).integers(0, 4096, (3, 4, 4), dtype=np.uint16)
    content = encode_tiff(values, photometric, extra)
    assert check_image(content, LIMIT) == ("", 12, 0)
    expected = read_pixels(BytesIO(content), 3, WHITE, LIMIT)
    assert (read_pixels(BytesIO(content), 3, WHITE, LIMIT, 4095) == expected).all()
    if extra == 0:
        assert (expected == values[..., :3] >> 8).all()
    assert capfd.readouterr().err == ""


def test_twelve_bits_in_16_bit_files_are_noted_with_what_to_type(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "data" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 4001, (8, 8), dtype=np.uint16)
        values[0, 0] = 4000
        (folder / f"{number}.png").write_bytes(encode_wide(values, ".png"))

    def source(**changes):
        config = folder_config(tmp_path / "data", **changes)
        return image_files(LISTINGS["ImageFolder"](config), config)

    expected = "16-bit pictures use values up to 4,000 only: data.white=4095 spreads 12 bits over the whole range"
    assert source().notes == source().notes == (expected,)  # also when no file is read
    assert source(white=4095).notes == ()
    assert describe_range(0, 4095) == ("data.white=4095 changes nothing: no picture has 16 bits",)
    assert source(white=255).notes == (
        "data.white=255: 16-bit pictures have values up to 4,000; those above become white too",
    )
    assert source().images[0].max() <= 16
    assert source(white=4095).images[0].max() >= 200
    packs = [source(pack=True, white=white).images for white in (None, 4095)]
    assert [int(np.asarray(pack).max()) for pack in packs] == [16, 249]  # 4000 * 255 / 65535 and / 4095


def test_white_and_duplicates_are_part_of_the_identity_unless_they_change_nothing():
    keys = {"white", "duplicates"}
    assert not keys & set(NOT_IN_DATA)
    for changes, expected in (({}, set()), ({"white": 65535}, set()), ({"white": 4095, "duplicates": "drop"}, keys)):
        assert keys & set(folder_config(Path("data"), **changes).model_dump(exclude_defaults=True)) == expected
