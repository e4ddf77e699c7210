"""Names of files, folders and classes: what is shown of them, which part a name stands for, which ones look alike."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

ALL, UNLABELLED = "all", "unlabelled"
LABELLED_PARTS = ("train", "val", "test")
FURTHER_TEST_PREFIX = "test-"  # of the names of further test sets
OLD_CLASSES = "test-old-classes"  # the test set of the run that one more class comes to
WITHOUT_DUPLICATES = "-without-duplicates"  # ends the name of a test set that is measured without its leaked images
PART_OF_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("unlabelled", "unlabeled"), UNLABELLED),
}
# What programs keep beside people's files: NAS systems, macOS, Windows, Linux desktops and file systems, Jupyter
JUNK_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "@recycle", ".@__thumb", "@tmp"}
    | {"__macosx", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems"}
    | {"$recycle.bin", "recycler", "system volume information"}
    | {".thumbnails", ".trash", "lost+found", ".picasaoriginals", ".ipynb_checkpoints", "__pycache__"}
)
MAX_NAMED = 5  # things that a message names before it only counts

# Control characters, separators of lines, marks that turn the direction of the text behind them, and what stands for
# bytes that are not UTF-8 (surrogates, PEP 383)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_FIRST_BYTE, _LAST_BYTE, _BYTE_OFFSET = 0xDC80, 0xDCFF, 0xDC00  # surrogates that stand for bytes (PEP 383)
_ASCII_END = 0x80


def printable(text: str) -> str:
    r"""Return a name as one line of valid UTF-8; what is no such text is written as an escape: ``\xff``, ``\n``.

    Text in any script is returned unchanged.
    """
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        return f"\\x{code - _BYTE_OFFSET:02x}"
    return _SHORT_ESCAPES.get(match[0]) or (f"\\x{code:02x}" if code < _ASCII_END else f"\\u{code:04x}")


def abbreviate(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(printable, names[:MAX_NAMED])) + more


def find_part(name: str) -> str | None:
    """Return the part that a split's name stands for, in any case: train, val, test, test-NAME or unlabelled."""
    if name.lower().startswith(FURTHER_TEST_PREFIX) and len(name) > len(FURTHER_TEST_PREFIX):
        return FURTHER_TEST_PREFIX + printable(name[len(FURTHER_TEST_PREFIX) :])
    return PART_OF_NAME.get(name.lower())


def is_junk(folder_name: str) -> bool:
    """Return whether a folder of this name is a program's own: thumbnails, trash, metadata."""
    return folder_name.lower() in JUNK_FOLDERS


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names of classes in the order of their labels: by value if all are numbers, else by name."""
    distinct = sorted(set(names))
    return tuple(sorted(distinct, key=_value) if all(map(str.isdecimal, distinct)) else distinct)


def _value(number: str) -> tuple[int, str]:
    """Return what compares as the value of a number does, whose digits may be too many for ``int``, in any script."""
    digits = "".join(str(unicodedata.decimal(digit)) for digit in number).lstrip("0")
    return len(digits), digits


def describe_classes(names: Sequence[str]) -> str:
    """Return how many classes there are, in words."""
    return "no class" if not names else f"1 class ({names[0]})" if len(names) == 1 else f"{len(names)} classes"


def hint_at_second_class(names: Sequence[str]) -> str:
    """Return what to do about a single class; nothing without classes."""
    return f", as nothing says what {names[0]} is not: add a class of other pictures" if len(names) == 1 else ""


def describe_similar(names: Iterable[str]) -> str:
    """Return the names that differ only by case, blanks or Unicode form, such as ``'Cat' and 'cat '``; or nothing."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_fold(name), []).append(name)
    alike = [" and ".join(_quote(name, group) for name in group) for group in groups.values() if len(group) > 1]
    return "; ".join(alike[:MAX_NAMED]) + (f" and {len(alike) - MAX_NAMED} more" if len(alike) > MAX_NAMED else "")


def similar_notes(names: Iterable[str], setting: str) -> tuple[str, ...]:
    """Return a note on classes that differ only by case, blanks or Unicode form; none if there are none."""
    similar = describe_similar(names)
    if not similar:
        return ()
    return (f"{setting}: classes that differ only by case, blanks or Unicode form: {similar}; are they one class?",)


def _fold(name: str) -> str:
    """Return what names have in common that differ only by case, blanks or Unicode form."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).split())


def _quote(name: str, others: Sequence[str]) -> str:
    """Return a name in quotation marks, in ASCII where another name looks the same."""
    forms = [unicodedata.normalize("NFC", other) for other in others]
    return ascii(name) if forms.count(unicodedata.normalize("NFC", name)) > 1 else f"'{name}'"
