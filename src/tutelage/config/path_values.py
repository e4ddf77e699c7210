r"""Paths in overrides: they are typed as they are, and quoted here for Hydra's grammar.

Hydra reads ``=``, quotation marks, brackets, braces, colons and letters such as ü in a value as its grammar, and
``2024`` or ``true`` as no text. For keys that name paths only these mean what they mean to Hydra:

- a comma outside braces separates the values of a sweep; ``\,`` is a comma in a path;
- a value in Hydra's own quotation marks, ``null``, and functions such as ``range(1,9)`` and ``glob(*)`` stay;
- ``${...}`` refers to another key or a variable; ``\${`` is these two characters;
- ``strategy.teachers=[a,b]`` is a list.

In the pattern ``data.group`` a comma separates nothing and there are no functions.
"""

import re
from collections.abc import Sequence

from tutelage.errors import UserError

PATH_KEYS = ("data.root", "data.unlabelled", "init_from", "paths.outputs")
PATTERN_KEYS = ("data.group",)
PATH_LIST_KEYS = ("strategy.teachers",)
OVERRIDE = re.compile(r"([+~]*)([^=]+)=(.*)", re.DOTALL)
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
FUNCTION_START = re.compile(r"(?:bool|choice|float|glob|int|interval|range|shuffle|sort|str|tag)\(")
END_OF_VALUE, END_IN_BRACKETS = re.compile(r"\s*(?:,|\Z)"), re.compile(r"\s*[],})]")
ESCAPED_COMMA = "\\,"
# What Hydra reads as the same text without quotation marks, but for the words and numbers that are no text to it
PLAIN = re.compile(r"(?!(?:true|false|null|inf|nan)$)(?!\.[0-9])[a-z_./][a-z0-9_./-]*", re.IGNORECASE | re.ASCII)
QUOTES_AND_BACKSLASHES = re.compile(r"(\\*)('|\Z)")
CLOSING = {"{": "}", "[": "]", "(": ")"}


def override_key(override: str) -> str:
    """Return the key or the group of an override, without the marks before it."""
    return override.lstrip("+~").partition("=")[0]


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Return overrides in Hydra's grammar: the values of keys that name paths get its quotation marks.

    Overrides of other keys stay; so do those that this function has returned.

    Raises:
        UserError: there is nothing beside a comma.
    """
    return [_quote_override(override) for override in overrides]


def quote(text: str) -> str:
    """Return a text as a value in Hydra's grammar, in single quotation marks unless it is plain.

    A quotation mark is escaped by a backslash, and the backslashes before it are doubled.
    """
    if PLAIN.fullmatch(text):
        return text
    escaped = QUOTES_AND_BACKSLASHES.sub(lambda match: 2 * match[1] + (match[2] and f"\\{match[2]}"), text)
    return f"'{escaped}'"


def _quote_override(override: str) -> str:
    match = OVERRIDE.fullmatch(override)
    if match is None or match[2] not in (*PATH_KEYS, *PATH_LIST_KEYS, *PATTERN_KEYS):
        return override
    if match[2] in PATTERN_KEYS:
        is_text = match[3].lower() != "null" and not QUOTED.fullmatch(match[3])
        return f"{match[1]}{match[2]}={quote(match[3]) if is_text else match[3]}"
    values = _quote_values(match[3], is_list=match[2] in PATH_LIST_KEYS)
    if values is None:
        raise UserError(f"{override}: there is nothing beside a comma; {ESCAPED_COMMA} is a comma in a path")
    return f"{match[1]}{match[2]}={values}"


def _quote_values(typed: str, is_list: bool) -> str | None:
    """Return the values of an override, which commas separate, in Hydra's grammar; None where one is missing."""
    parts = _split_at_commas(typed, "{[" if is_list else "{")
    if len(parts) == 1:
        return _quote_value(typed, is_list)
    values = [_quote_value(part.strip(), is_list) for part in parts]  # blanks beside commas are no part of a path
    return None if None in values or "" in values else ",".join(filter(None, values))


def _quote_value(typed: str, is_list: bool) -> str | None:
    """Return one value in Hydra's grammar; None for a list that lacks one."""
    value = typed.strip()
    if is_list and value.startswith("[") and value.endswith("]"):
        entries = _quote_values(value[1:-1].strip(), is_list=False)
        return None if entries is None else f"[{entries}]"
    function = FUNCTION_START.match(value)
    is_function = function is not None and _find_end(value, function.end() - 1) == len(value)
    if not typed or value.lower() == "null" or QUOTED.fullmatch(value) or is_function:
        return value
    return quote(typed.replace(ESCAPED_COMMA, ","))


def _split_at_commas(typed: str, brackets: str) -> list[str]:
    """Return the parts of a text between its commas, but for those in brackets, quotation marks and functions.

    Args:
        typed: the text.
        brackets: the opening ones of those within which a comma separates nothing.
    """
    parts, position = [""], 0
    while position < len(typed):
        piece = _next_piece(typed, position, brackets, is_first=not parts[-1].strip())
        if piece == ",":
            parts.append("")
        else:
            parts[-1] += piece
        position += len(piece)
    return parts


def _next_piece(typed: str, position: int, brackets: str, is_first: bool) -> str:
    """Return the text at a position that no comma separates: a character, or as far as a bracket or a quotation goes.

    Args:
        typed: the text.
        position: of the piece's first character.
        brackets: the opening ones of those within which a comma separates nothing.
        is_first: whether a value begins here, which may be in quotation marks, or a function.
    """
    quoted = QUOTED.match(typed, position) if is_first else None
    if quoted and END_OF_VALUE.match(typed, quoted.end()):
        return quoted[0]
    function = FUNCTION_START.match(typed, position) if is_first else None
    if function and END_OF_VALUE.match(typed, end := _find_end(typed, function.end() - 1)):
        return typed[position:end]
    if typed.startswith(ESCAPED_COMMA, position):
        return ESCAPED_COMMA
    return typed[position : _find_end(typed, position)] if typed[position] in brackets else typed[position]


def _find_end(typed: str, start: int) -> int:
    """Return where the bracket that opens at ``start`` has closed; for one that never closes, where it has opened."""
    opening, depth, position = typed[start], 0, start
    while position < len(typed):
        quoted = QUOTED.match(typed, position) if typed[position - 1] in f"{opening}, " else None
        if quoted and END_IN_BRACKETS.match(typed, quoted.end()):
            position = quoted.end()
            continue
        depth += (typed[position] == opening) - (typed[position] == CLOSING[opening])
        position += 1
        if depth == 0:
            return position
    return start + 1
