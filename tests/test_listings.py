"""What folders and tables are read as: split folders, programs' own folders, spreadsheets, names of any bytes."""

import csv
import io
import itertools
import os
import resource
import socket
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.configs import rgb_config
from helpers.forks import call_in_fork
from tutelage.config.compose import compose
from tutelage.data import fingerprint
from tutelage.data.datasets.image_files import LISTINGS
from tutelage.data.files import columns as columns_module
from tutelage.data.files import listing as listing_module
from tutelage.data.files.columns import read_columns
from tutelage.data.files.folders import list_folder
from tutelage.data.files.names import describe_similar, find_part, printable
from tutelage.data.files.tables import list_table
from tutelage.data.files.unlabelled import add_unlabelled
from tutelage.data.shards.pools import find_shards
from tutelage.errors import UserError
from tutelage.runs.identity import run_identity

CLASSES = ("cat", "dog")
ODD_NAMES = (
    b"\xff.png",
    b"a\nb.png",
    "ä\u2028\u0085.png".encode(),
    rb"$\frac{1}{$.png",
    b"[red] [bold].png",
    "قطة\u202e😀.png".encode(),
)


def write_files(top: Path, *names: str | bytes) -> None:
    """Write files with a byte each: a listing does not open them."""
    for name in names:
        path = top / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_parts(top: Path, *parts: str, images: int = 2) -> None:
    for part in parts:
        write_files(top, *(f"{part}/{label}/{n}.png" for label in CLASSES for n in range(images)))


def count_parts(top: Path, **options) -> dict[str, int]:
    return dict(Counter(entry.part for entry in list_folder(str(top), **options).entries))


def test_a_walk_yields_whole_paths_in_the_order_of_their_bytes_however_many_are_sorted_at_once(tmp_path, monkeypatch):
    names = ["a/x.png", "a-b.png", "a.png", "a/", "ab/c/1.png", "ab/c-.png", "ä.png", *(f"{n}.png" for n in range(9))]
    write_files(tmp_path, *(name for name in names if not name.endswith("/")), b"\xff.png", b"a/\x80.png")
    expected = sorted(os.fsencode(path) for path in tmp_path.rglob("*.png"))
    for at_once, block in ((4, 2), (3, 2), (16_384, 256)):
        monkeypatch.setattr(listing_module, "NAMES_SORTED", at_once)
        monkeypatch.setattr(listing_module, "NAMES_A_BLOCK", block)
        assert [os.fsencode(path) for path in listing_module.walk_paths(str(tmp_path))] == expected
    (tmp_path / "ab" / "up").symlink_to(tmp_path)
    assert len(list(listing_module.walk_paths(str(tmp_path)))) == len(expected)


def test_a_folder_that_cannot_be_read_ends_the_walk_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"gone: cannot be read \(No such file or directory\)"):
        list(listing_module.walk_paths(str(tmp_path / "gone")))
    (tmp_path / "a" / "closed").mkdir(parents=True)
    (tmp_path / "a" / "closed").chmod(0)

    def list_as_other_user() -> int:
        if os.geteuid() == 0:
            os.setuid(65_534)  # nobody
        with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
            list_folder(str(tmp_path))
        return 0

    assert call_in_fork(list_as_other_user) == 0


@pytest.mark.slow
def test_a_million_long_names_are_sorted_in_less_than_half_of_their_own_bytes_more():
    def measure_growth() -> int:
        names = (b"2024-05-17_camera-03_northgate_%024d_crop.jpg" % (n * 7919 % 1_000_003) for n in range(1_000_000))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        last, count = b"", 0
        for name in listing_module._sort_names(itertools.chain([b"x" * 250], names)):
            assert last < name
            last, count = name, count + 1
        assert count == 1_000_001
        return int((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3 > 64 / 2)  # kB; 64 MB of names

    assert call_in_fork(measure_growth) == 0


def test_paths_of_a_table_come_one_by_one_as_they_come_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(columns_module, "ROWS_AT_ONCE", 2)
    for rows, error in (("a,1\nb,2\nc,3\n,\n,\n", ""), ("a,1\n,2\n,3\nd,\n", "row 3 has no path"), ("\n,4\n", None)):
        (tmp_path / "x.csv").write_text("path,n\n" + rows)
        columns = columns_module.open_columns(tmp_path / "x.csv", "x")
        if error:
            with pytest.raises(UserError, match=error):
                list(columns.paths())
        elif error == "":
            assert list(columns.paths()) == columns.texts(["path"])["path"] == ["a", "b", "c"]
        else:
            assert list(columns.paths()) == []


@pytest.mark.parametrize(
    ("train", "val", "test", "unlabelled"),
    [
        ("train", "val", "test", "unlabelled"),
        ("Train", "Valid", "Test", "Unlabeled"),
        ("TRAINING", "validation", "testing", "unlabeled"),
        ("training", "DEV", "TEST", "UNLABELLED"),
    ],
)
def test_split_folders_are_what_their_names_say_in_any_case(tmp_path, train, val, test, unlabelled):
    write_parts(tmp_path, train, val, test, "Test-Night")
    write_files(tmp_path, f"{unlabelled}/a/0.png")
    assert count_parts(tmp_path) == {"train": 4, "val": 4, "test": 4, "test-Night": 4, "unlabelled": 1}
    assert count_parts(tmp_path, val_is_test=True) == {"train": 4, "test": 8, "test-Night": 4, "unlabelled": 1}
    assert list_folder(str(tmp_path)).classes == CLASSES


@pytest.mark.parametrize(("first", "second"), [("val", "valid"), ("train", "Training"), ("dev", "validation")])
def test_two_folders_of_one_part_are_refused_by_name(tmp_path, first, second):
    write_parts(tmp_path, "train", first, second)
    with pytest.raises(UserError, match=r"(/ and \w+)+/ are the same part") as error:
        list_folder(str(tmp_path))
    assert f"{first}/" in str(error.value)
    assert f"{second}/" in str(error.value)


def test_folders_beside_split_folders_are_refused_or_left_out_or_classes_as_the_layout_says(tmp_path):
    write_parts(tmp_path, "train")
    write_files(tmp_path, "masks/0.png", "0.png")
    with pytest.raises(UserError, match=r"masks; 1 image .*0.png .*data.layout=splits .* data.layout=classes if"):
        list_folder(str(tmp_path))
    listing = list_folder(str(tmp_path), layout="splits")
    assert {entry.part for entry in listing.entries} == {"train"}
    assert [note.split("left out: ")[1] for note in listing.notes] == [
        "folders that are no part of the data: masks",
        "1 image beside the parts: 0.png",
    ]
    (tmp_path / "0.png").unlink()
    assert list_folder(str(tmp_path), layout="classes").classes == ("masks", "train")


@pytest.mark.parametrize(
    ("files", "layout", "message"),
    [
        (["train/a/0.png", "train/b/0.png", "0.png"], "auto", "1 image beside the parts: 0.png"),
        (["train/a/0.png", "train/b/0.png", "test-x/0.png"], "auto", "test-x: 1 image outside class folders: 0.png"),
        (["train/0.png", "test/0.png"], "auto", "train: 1 image outside .* data.layout=classes if train is a class"),
        (["a/0.png", "b/0.png", "test/0.png"], "auto", "test/, but no train/; .* data.layout=classes if each"),
        (["a/0.png", "b/0.png"], "splits", "no train/; put the images to learn from into train/CLASS/"),
    ],
)
def test_images_that_no_part_would_use_are_an_error(tmp_path, files, layout, message):
    write_files(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        list_folder(str(tmp_path), layout=layout)


def test_a_part_without_images_is_named_and_unlabelled_images_need_no_split_folders(tmp_path):
    write_parts(tmp_path, "train")
    (tmp_path / "test").mkdir()
    assert list_folder(str(tmp_path)).notes == (f"data.root={tmp_path}: no images in test/",)
    for path in ("train", "test"):
        (tmp_path / path).rename(tmp_path / f".{path}")
    write_files(tmp_path, "cat/0.png", "dog/0.png", "Unlabeled/0.png")
    assert count_parts(tmp_path) == {"all": 2, "unlabelled": 1}


def test_the_layout_goes_with_folders_and_is_not_in_the_identity():
    plain, with_layout = (
        compose(["data=image_folder", "recipe=none", "data.root=x", *more]) for more in ([], ["data.layout=splits"])
    )
    assert run_identity(plain, "f") == run_identity(with_layout, "f")
    with pytest.raises(UserError, match=r"data.layout=splits goes with data=image_folder, imagenet, not"):
        compose(["data=table", "recipe=none", "data.root=x.csv", "data.layout=splits"])


def test_folders_that_programs_keep_for_themselves_are_left_out_and_counted(tmp_path, monkeypatch):
    write_parts(tmp_path, ".")
    junk = ["cat/@eaDir/0.png/thumb.jpg", "__MACOSX/cat/1.png", "__MACOSX/cat/2.png", "dog/x/.ipynb_checkpoints/0.png"]
    write_files(tmp_path, *junk, "cat/@eaDir/index.db", "$RECYCLE.BIN/empty.txt", ".hidden/0.png", "cat/._0.png")
    listing = list_folder(str(tmp_path))
    assert listing.classes == CLASSES
    assert len(listing.entries) == 4
    (note,) = listing.notes
    assert note.endswith("are left out (__MACOSX 2, @eaDir 1, .ipynb_checkpoints 1)")
    assert note in list_folder(str(tmp_path), layout="classes").notes
    monkeypatch.setattr("tutelage.data.files.listing.MAX_WALKED", 2)
    assert list_folder(str(tmp_path)).notes[0].endswith("(__MACOSX 2, counted no further than 2 files)")
    pool = tmp_path / "pool"
    write_files(pool, "0.png", ".thumbnails/0.png", "lost+found/0.png")
    (tmp_path / "data").mkdir()
    for label in CLASSES:
        (tmp_path / label).rename(tmp_path / "data" / label)
    joined = add_unlabelled(list_folder(str(tmp_path / "data")), str(pool))
    assert [entry.name for entry in joined.entries if entry.part == "unlabelled"] == ["0.png"]
    assert sum("left out" in note and str(pool) in note for note in joined.notes) == 1


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("a FIFO", os.mkfifo),
        ("a socket", make_socket),
        ("a device", lambda path: path.symlink_to("/dev/null")),
        ("a folder", lambda path: path.mkdir()),
    ],
)
def test_only_regular_files_are_opened(tmp_path, kind, make):
    write_parts(tmp_path, "data")
    listing = list_folder(str(tmp_path / "data"))
    make(tmp_path / "x.png")
    (tmp_path / "list.txt").write_text("x.png\n")
    (tmp_path / "list.csv").write_text("path,label\nx.png,cat\n")
    refused = [lambda: add_unlabelled(listing, str(tmp_path / "list.txt")), lambda: list_table(f"{tmp_path}/list.csv")]
    if kind != "a folder":
        (tmp_path / "data" / "cat" / "x.png").symlink_to(tmp_path / "x.png")
        refused.append(lambda: list_folder(str(tmp_path / "data")))
    for call in refused:
        with pytest.raises(UserError, match=rf"x.png: {kind}, not a regular file"):
            call()
    for suffix in (".csv", ".parquet", ".txt", ".tar") if kind != "a folder" else ():
        path = tmp_path / f"pool{suffix}"
        make(path)
        with pytest.raises(UserError, match=rf"pool{suffix}: {kind}, not a regular file"):
            find_shards(str(path)) or add_unlabelled(listing, str(path))


def test_links_to_regular_files_are_read(tmp_path):
    write_parts(tmp_path, ".")
    write_files(tmp_path.parent, "elsewhere.png")
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path.parent / "elsewhere.png")
    for folder in ("", "cat"):
        (tmp_path / folder / "notes").symlink_to("notes")
    assert len(list_folder(str(tmp_path)).entries) == 5
    (tmp_path / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match=r"cat/loop.png: cannot be read \(Too many levels of symbolic links\); repair"):
        list_folder(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 256, "x" * 256 + ".csv"])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(tmp_path, name):
    write_parts(tmp_path, "data")
    config = rgb_config(_target_="tutelage.data.ImageFolder", root=str(tmp_path / "data"), unlabelled=name)
    for call in (
        lambda: list_folder(name),
        lambda: list_table(name),
        lambda: LISTINGS["ImageFolder"](config),
        lambda: fingerprint(rgb_config(_target_="tutelage.data.Digits", root=name)),
    ):
        with pytest.raises(
            UserError, match=r"^data.(root|unlabelled)=x*(.csv)?: cannot be read \(File name too long\); name"
        ):
            call()


@pytest.mark.parametrize("name", ["test-without-duplicates", "Test-night-Without-duplicates"])
def test_a_folder_is_not_called_as_the_score_of_another_without_duplicates(tmp_path, name):
    write_parts(tmp_path, "train", "test", name)
    with pytest.raises(UserError, match="names with -without-duplicates at the end are kept for the scores"):
        list_folder(str(tmp_path))


@given(st.text(st.characters() | st.characters(categories=["Cs"])))
@settings(max_examples=60)
def test_a_name_is_shown_as_one_line_of_valid_text(name):
    shown = printable(name)
    assert shown.encode().decode() == shown
    assert len(shown.splitlines()) <= 1
    assert not {"Cc", "Cs", "Zl", "Zp"} & {unicodedata.category(character) for character in shown}
    assert printable(shown) == shown


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_text_in_any_script_is_shown_unchanged(name):
    assert printable(name) == name


def test_bytes_that_are_not_utf_8_are_shown_as_the_bytes_they_are():
    assert printable(os.fsdecode(b"caf\xe9\n")) == r"caf\xe9\n"
    assert printable("\u2028\x1b\x85\u202e\ud800") == r"\u2028\x1b\u0085\u202e\ud800"
    family = "👨\u200d👩 می\u200cخواهم"  # joiners are part of emoji and of Persian words
    assert printable(family) == family


def test_files_and_classes_of_any_name_are_listed_and_opened(tmp_path):
    for name in ODD_NAMES:
        write_files(tmp_path, name + b"/" + name, b"unlabelled/" + name)
    listing = list_folder(str(tmp_path))
    assert len(listing.classes) == len(ODD_NAMES)
    assert sorted(listing.classes) == sorted(printable(os.fsdecode(name)) for name in ODD_NAMES)
    for entry in listing.entries:
        assert Path(entry.path).read_bytes() == b"x"
        assert printable(entry.name) == entry.name
    rows = [[os.fsencode(entry.path)[len(str(tmp_path)) + 1 :], str(n % 2)] for n, entry in enumerate(listing.entries)]
    quoted = b"".join(b'"%s",%s\n' % (path.replace(b'"', b'""'), label.encode()) for path, label in rows)
    (tmp_path / "list.csv").write_bytes(b"path,label\n" + quoted)
    table = list_table(str(tmp_path / "list.csv"))
    assert [entry.path for entry in table.entries] == [entry.path for entry in listing.entries]
    assert [entry.name for entry in table.entries] == [entry.name for entry in listing.entries]


def test_two_folders_that_would_be_shown_alike_are_an_error(tmp_path):
    write_files(tmp_path, b"\xff/0.png", rb"\xff/0.png")
    with pytest.raises(UserError, match=r"two folders are shown as \\xff"):
        list_folder(str(tmp_path))


def test_classes_that_look_alike_are_named_once(tmp_path):
    assert describe_similar(["Cat", "cat", "cat ", "dog", "do g"]) == "'Cat' and 'cat' and 'cat '"
    assert describe_similar(["caf\u00e9", "cafe\u0301"]) == r"'cafe\u0301' and 'caf\xe9'"
    assert describe_similar(["cat", "dog", "カ", "ガ", "1", "01"]) == ""
    write_files(tmp_path, "Cat/0.png", "cat/0.png", "dog/0.png")
    (tmp_path / "list.csv").write_text("path,label\nCat/0.png,big  dog\ncat/0.png,Big dog\n")
    for listing in (list_folder(str(tmp_path)), list_table(str(tmp_path / "list.csv"))):
        (note,) = listing.notes
        assert "differ only by case, blanks or Unicode form: '" in note
    write_files(tmp_path / "split", "train/caf\u00e9/0.png", "train/b/0.png", "test/cafe\u0301/0.png")
    with pytest.raises(UserError, match=r"that train/ lacks: .* .alike: 'cafe\\u0301' and 'caf\\xe9'"):
        list_folder(str(tmp_path / "split"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1, max_size=6)


@given(
    st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), min_size=1, max_size=5),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@settings(max_examples=40)
def test_a_csv_table_is_read_as_a_spreadsheet_wrote_it(tmp_path_factory, rows, separator, end, encoding, quoting):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([("id", " Path ", "LABEL"), *(("7", *row) for row in rows)])
    file = tmp_path_factory.getbasetemp() / "spreadsheet.csv"
    file.write_bytes(text.getvalue().encode(encoding))
    columns = read_columns(file, "data.root=x", ["path", "label", "group"])
    assert columns == {"path": [path for path, _ in rows], "label": [label for _, label in rows]}


def test_newlines_in_the_cells_of_a_large_table_end_no_row(tmp_path):
    label = "line\n" * 100
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f'{n}.png,"{label}"\n' for n in range(5000)))
    columns = read_columns(tmp_path / "list.csv", "data.root=x", ["path", "label"])
    assert columns == {"path": [f"{n}.png" for n in range(5000)], "label": [label] * 5000}


def write_table(top: Path, content: str | bytes | dict[str, list]) -> str:
    """Write a table, CSV or (from columns) Parquet, beside the images a.png, b.png and c.png; return its path."""
    write_files(top, "a.png", "b.png", "c.png")
    file = top / ("list.parquet" if isinstance(content, dict) else "list.csv")
    if isinstance(content, dict):
        pq.write_table(pa.table(content), file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


@pytest.mark.parametrize(
    "content",
    [
        "path,cat,dog,id\na.png,1,0,7\nb.png,0,1,8\n",
        " Path ; cat ; dog ;id\na.png; 1 ; 0 ;7\nb.png;0.0;1.0;8\n",
        {"path": ["a.png", "b.png"], "cat": [1, 0], "dog": [0.0, 1.0], "id": [7, 8]},
        {"path": ["a.png", "b.png"], "cat": [True, False], "dog": ["0", "1"], "id": [b"\xff", b"\xff"]},
    ],
)
def test_a_column_for_each_class_says_the_class(tmp_path, content):
    listing = list_table(write_table(tmp_path, content))
    assert [(entry.name, entry.label) for entry in listing.entries] == [("a.png", "cat"), ("b.png", "dog")]
    assert listing.notes[0].endswith("the classes are the columns of 0 and 1 (cat, dog); not read: id")


def test_an_unlabelled_row_needs_no_class_among_the_columns(tmp_path):
    content = "path,cat,dog,split\na.png,1,0,Training\nb.png,0,1,train\nc.png,,,unlabeled\n"
    entries = list_table(write_table(tmp_path, content)).entries
    assert [(entry.part, entry.label) for entry in entries] == [
        ("train", "cat"),
        ("train", "dog"),
        ("unlabelled", None),
    ]


def test_a_column_without_a_1_is_named_and_empty_rows_at_the_end_are_none(tmp_path):
    listing = list_table(write_table(tmp_path, "path;cat;dog;rare\na.png;1;0;0\nb.png;0;1;0\n;;;\n;;;\n"))
    assert (len(listing.entries), listing.classes) == (2, ("cat", "dog"))
    assert listing.notes[0].endswith("; without a 1, so no class: rare")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.png,x\nb.png\n", "cannot be read as a table .*Expected 2 columns, got 1: b.png"),
        ("path,label\na.png,x,y\n", "cannot be read as a table .*Expected 2 columns, got 3: a.png,x,y"),
        ("", "no rows$"),
        ("\n\n", "no rows$"),
        ("path,label", "no rows .the columns are path, label"),
        ({"path": [], "label": []}, "no rows .the columns are path, label"),
        ("file;label\na.png;x\n", "no column 'path' .there are file, label"),
        ("path\tclass\na.png\tx\n", "no column 'label', nor a column of 0 and 1 for each class .there are path, class"),
        ("path,label\n,x\n", "row 2 has no path .row 1 is the header"),
        ({"path": ["a.png", " \t"], "label": ["x", "y"]}, "row 3 has no path"),
        ("path,label, label\na.png,x,y\n", "2 columns are called 'label'"),
        (b"path,label\na.png,M\xfcll\n", "save it as CSV in UTF-8"),
        ("path,cat,dog\na.png,1,0\nb.png,0,0\n", r"none of the columns of 0 and 1 .cat, dog. is 1 for b.png"),
        ("path,cat,dog\na.png,1,1\nb.png,0,1\n", r"several of the columns of 0 and 1 .cat, dog. is 1 for a.png"),
        ("path,cat,cat\na.png,1,0\nb.png,0,1\n", "two columns have one name"),
        ('path,label\na.png,a\\nb\nb.png,"a\nb"\n', "two labels differ only in characters that are not shown"),
    ],
)
def test_a_table_that_is_not_one_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        list_table(write_table(tmp_path, content))
    assert len(str(error.value).splitlines()) == 1


def test_empty_lines_before_the_header_and_between_rows_are_no_rows(tmp_path):
    content = "\ufeff\r\n\r\npath,label\r\na.png,x\r\n\r\nb.png,\ty\r\n"
    assert [entry.label for entry in list_table(write_table(tmp_path, content)).entries] == ["x", r"\ty"]


@pytest.mark.parametrize(
    ("name", "part"),
    [("Valid", "val"), ("test-a", "test-a"), ("TEST-a", "test-a"), ("test-", None), ("tests", None), ("", None)],
)
def test_a_part_has_several_names(name, part):
    assert find_part(name) == part
