"""What a sweep varies: its overrides are fixed, lists or intervals; grids of them, and draws from them.

They are written in Hydra's grammar: ``a=1,2``, ``a=range(1,9)``, ``a=interval(0.1,0.9)``, ``a=int(interval(1,9))``,
``a=tag(log,interval(1e-4,0.1))``; ``a=tag(subset,choice(x,y,z))`` is any list of some of these.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UserError
from tutelage.randomness import Key

LOG, SUBSET = "log", "subset"  # tags
TRIES = 20  # for each trial that is asked for, until enough different ones are drawn
DIGITS = 4  # of a drawn number: enough to tell, and short to type


@dataclass(frozen=True)
class Dimension:
    """One override of a sweep.

    Attributes:
        key: what it sets, with its + and @ as typed.
        typed: the whole override, as typed.
        values: a list's; empty where it is fixed or an interval.
        bounds: an interval's.
        whole: only whole numbers, both bounds among them.
        log: drawn so that each factor is as likely as the next.
        subset: some of ``values`` together, rather than one.
    """

    key: str
    typed: str
    values: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    whole: bool = False
    log: bool = False
    subset: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return not self.values and self.bounds is None

    @property
    def is_drawn(self) -> bool:
        """Whether there are no single values of which a grid could be made."""
        return self.bounds is not None or self.subset

    @property
    def typical(self) -> list[str]:
        """The overrides that show whether all is well: every value of a list, the ends of an interval."""
        if self.subset:
            return [self.chosen(self.values)]
        if self.bounds is not None:
            return [self.number(bound) for bound in self.bounds]
        return [self.one(value) for value in self.values] or [self.typed]

    def one(self, value: str) -> str:
        """Return the override that sets it to a value."""
        return f"{self.key}={value}"

    def chosen(self, values: Sequence[str]) -> str:
        """Return the override that sets it to a list."""
        return self.one(f"[{','.join(values)}]")

    def number(self, value: float) -> str:
        """Return the override that sets it to a number."""
        return self.one(str(int(value)) if self.whole else str(float(f"{value:.{DIGITS}g}")))

    def drawn(self, seed: int, trial: int) -> str:
        """Return the override of a trial: a function of seed, trial and key alone."""
        draw = Key(seed, "sweep", self.key.lstrip("+")).generator("trial", index=trial)
        if self.subset:
            size = int(draw.integers(1, len(self.values) + 1))
            return self.chosen([self.values[place] for place in sorted(draw.permutation(len(self.values))[:size])])
        if self.bounds is not None:
            return self.number(self._within(float(draw.random())))
        return self.one(self.values[int(draw.integers(len(self.values)))]) if self.values else self.typed

    def _within(self, share: float) -> float:
        """Return the value that lies a share of [0, 1) into the interval."""
        assert self.bounds is not None  # noqa: S101 - the caller has seen it
        low, high = self.bounds[0], self.bounds[1] + (1 if self.whole else 0)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        return math.floor(value) if self.whole else value


def dimensions(overrides: Sequence[str], loader: Any = None) -> list[Dimension]:
    """Return what each override of a sweep stands for; those of Hydra itself are left out.

    Args:
        overrides: Hydra's, with lists and intervals.
        loader: Hydra's ConfigLoader, which knows what ``glob(*)`` finds.

    Raises:
        UserError: a list or an interval with which nothing can be done.
        HydraException: an override cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    both = list(zip(parsed, overrides, strict=True))
    if wrong := next((typed for one, typed in both if one.is_sweep_override() and one.is_hydra_override()), None):
        raise UserError(f"{wrong}: what Hydra itself is told has one value in a sweep")
    return [_dimension(one, typed) for one, typed in both if not one.is_hydra_override()]


def _dimension(override: Any, typed: str) -> Dimension:
    key, value = override.get_key_element(), override.value()
    tags = set(getattr(value, "tags", ()))
    if not override.is_sweep_override():
        return Dimension(key, typed)
    if unknown := tags - {LOG, SUBSET}:
        raise UserError(f"{typed}: no such tag as {min(unknown)}; there are {LOG} (interval) and {SUBSET} (choice)")
    if override.is_interval_sweep():
        low, high = value.start, value.end
        if not (low < high and (low > 0 or LOG not in tags)) or SUBSET in tags:
            raise UserError(f"{typed}: an interval rises, begins above 0 where it is tagged {LOG}, and is no {SUBSET}")
        whole = isinstance(low, int) and isinstance(high, int)
        return Dimension(key, typed, bounds=(low, high), whole=whole, log=LOG in tags)
    return Dimension(key, typed, values=tuple(override.sweep_string_iterator()), subset=SUBSET in tags)


def grid(space: Sequence[Dimension]) -> list[tuple[str, ...]]:
    """Return the overrides of every combination.

    Raises:
        UserError: there is an interval or a subset, of which there are no combinations.
    """
    for dimension in space:
        if dimension.is_drawn:
            raise UserError(
                f"{dimension.typed}: a grid needs lists of values; hydra/sweeper=random or optuna draws from it"
            )
    return list(itertools.product(*(dimension.typical for dimension in space)))


def draws(space: Sequence[Dimension], trials: int, seed: int) -> list[tuple[str, ...]]:
    """Return the overrides of the first ``trials`` different draws, or of as many as there are."""
    found = dict.fromkeys(tuple(dimension.drawn(seed, trial) for dimension in space) for trial in range(trials))
    for trial in range(trials, TRIES * trials):
        if len(found) == trials:
            break
        found.setdefault(tuple(dimension.drawn(seed, trial) for dimension in space))
    return list(found)
