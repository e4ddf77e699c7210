"""Tutelage trains image classifiers where labels are scarce."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.api import Run, RunTable, list_runs, load, run

__version__ = "0.1.0"
__all__ = ["Run", "RunTable", "list_runs", "load", "run"]


def __getattr__(name: str) -> Any:
    """Import what programs use when they ask for it: ``import tutelage`` alone loads nothing."""
    if name in __all__:
        from tutelage import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
