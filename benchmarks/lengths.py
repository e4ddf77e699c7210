"""The length of the benchmarks: full with ``make bench``, short with ``make bench-short``, which checks that they run.

The short form measures little, and its limits allow for that; the figures in the docs come from the full form.
"""

import os
from typing import TypeVar

T = TypeVar("T")

SHORT = os.environ.get("BENCH") == "short"


def length(full: T, short: T) -> T:
    """Return ``short`` if the environment has BENCH=short, else ``full``."""
    return short if SHORT else full
