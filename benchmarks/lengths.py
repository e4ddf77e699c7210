"""How long benchmarks run: in full by ``make bench``, or in short by ``make bench-short``, to show that they do run.

A short form measures little, and its limits leave room for that; what the docs state comes from the full ones.
"""

import os
from typing import TypeVar

T = TypeVar("T")

SHORT = os.environ.get("BENCH") == "short"


def length(full: T, short: T) -> T:
    """Return what goes with the form that was asked for."""
    return short if SHORT else full
