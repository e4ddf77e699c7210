"""The space of a sweep: overrides that are fixed, lists or intervals; grids of their values, and draws from them.

The overrides use Hydra's grammar: ``a=1,2``, ``a=range(1,9)``, ``a=interval(0.1,0.9)``, ``a=int(interval(1,9))``,
``a=tag(log,interval(1e-4,0.1))``; ``a=tag(subset,choice(x,y,z))`` is any list of some of these.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.config.path_values import quote_paths
from tutelage.errors import UserError
from tutelage.randomness import Key

LOG, SUBSET = "log", "subset"  # tags
MAX_DRAWS_PER_TRIAL = 20  # where draws repeat, before fewer trials than asked for are returned
MAX_VALUES, MAX_JOBS = 10_000, 100_000  # of one override, and of a sweep: a slip of the pen, such as range(0,1e9)
DIGITS = 4  # significant ones of a drawn number: enough to distinguish it, and short to type


@dataclass(frozen=True)
class Dimension:
    """One override of a sweep.

    Attributes:
        key: the key that the override sets, with + and @ as typed.
        override: the whole override, as typed, with its paths quoted for Hydra.
        values: the values of a list; empty for a fixed override or an interval.
        bounds: the ends of an interval; None for a fixed override or a list.
        integer: draw only whole numbers, both bounds included.
        log: draw uniformly on a logarithmic scale.
        subset: draw a list of some of ``values`` instead of one of them.
    """

    key: str
    override: str
    values: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    integer: bool = False
    log: bool = False
    subset: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether the override has one value."""
        return not self.values and self.bounds is None

    @property
    def needs_draws(self) -> bool:
        """Whether there are no single values to make a grid of."""
        return self.bounds is not None or self.subset

    @property
    def example_overrides(self) -> list[str]:
        """The overrides to check before a sweep: one for every value of a list, for both ends of an interval."""
        if self.subset:
            return [self.format_list(self.values)]
        if self.bounds is not None:
            return [self.format_number(bound) for bound in self.bounds]
        return [self.format_value(value) for value in self.values] or [self.override]

    def format_value(self, value: str) -> str:
        """Return the override that sets the key to a value."""
        return f"{self.key}={value}"

    def format_list(self, values: Sequence[str]) -> str:
        """Return the override that sets the key to a list of values."""
        return self.format_value(f"[{','.join(values)}]")

    def format_number(self, value: float) -> str:
        """Return the override that sets the key to a number, rounded to ``DIGITS`` digits."""
        return self.format_value(str(int(value)) if self.integer else str(float(f"{value:.{DIGITS}g}")))

    def draw(self, seed: int, trial: int) -> str:
        """Return the override of a trial: a function of the search's seed, the trial's number and the key alone."""
        generator = Key(seed, "sweep", self.key.lstrip("+")).generator("trial", index=trial)
        if self.subset:
            size = int(generator.integers(1, len(self.values) + 1))
            indices = sorted(generator.permutation(len(self.values))[:size])
            return self.format_list([self.values[index] for index in indices])
        if self.bounds is not None:
            return self.format_number(self._interpolate(float(generator.random()), *self.bounds))
        if self.values:
            return self.format_value(self.values[int(generator.integers(len(self.values)))])
        return self.override

    def _interpolate(self, fraction: float, low: float, high: float) -> float:
        """Return the value at a fraction, in [0, 1), of the interval between two bounds."""
        end = high + (1 if self.integer else 0)
        value = low * (end / low) ** fraction if self.log else low + fraction * (end - low)
        return math.floor(value) if self.integer else value


def parse_dimensions(overrides: Sequence[str], loader: Any = None) -> list[Dimension]:
    """Return a dimension for each override of a sweep, but for those of Hydra itself.

    Args:
        overrides: in Hydra's grammar, with lists and intervals; paths as they are typed.
        loader: Hydra's ConfigLoader, which finds the options that ``glob(*)`` stands for.

    Raises:
        UserError: a list or an interval that no sweeper can use.
        HydraException: an override cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = quote_paths(overrides)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    pairs = list(zip(parsed, overrides, strict=True))
    if swept := next((typed for item, typed in pairs if item.is_sweep_override() and item.is_hydra_override()), None):
        raise UserError(f"{swept}: a key of Hydra itself takes one value in a sweep")
    return [_make_dimension(item, typed) for item, typed in pairs if not item.is_hydra_override()]


def _make_dimension(parsed: Any, typed: str) -> Dimension:
    """Return the dimension of an override, given as Hydra parsed it and as typed."""
    key, value = parsed.get_key_element(), parsed.value()
    tags = set(getattr(value, "tags", ()))
    if not parsed.is_sweep_override():
        return Dimension(key, typed)
    if unknown := tags - {LOG, SUBSET}:
        raise UserError(
            f"{typed}: no such tag as {min(unknown)}; there are {LOG} (for interval) and {SUBSET} (for choice)"
        )
    if parsed.is_interval_sweep():
        low, high = value.start, value.end
        if not (low < high and (low > 0 or LOG not in tags)) or SUBSET in tags:
            raise UserError(
                f"{typed}: an interval needs a start below its end, above 0 with the tag {LOG}, and no tag {SUBSET}"
            )
        integer = isinstance(low, int) and isinstance(high, int)
        return Dimension(key, typed, bounds=(low, high), integer=integer, log=LOG in tags)
    if parsed.is_range_sweep() and not value.step:
        raise UserError(f"{typed}: a range with a step of 0 has no end; give another step")
    is_long = parsed.is_range_sweep() and abs(value.stop - value.start) > MAX_VALUES * abs(value.step)
    values = () if is_long else tuple(itertools.islice(parsed.sweep_string_iterator(), MAX_VALUES + 1))
    if is_long or len(values) > MAX_VALUES:
        raise UserError(f"{typed}: more than {MAX_VALUES:,} values for one key; give fewer")
    return Dimension(key, typed, values=values, subset=SUBSET in tags)


def check_job_count(space: Sequence[Dimension]) -> None:
    """Raise a UserError where a grid of a space, as far as it has lists, is of more jobs than any sweep has."""
    counts = {dimension.key: len(dimension.values) for dimension in space if len(dimension.values) > 1}
    if math.prod(counts.values()) > MAX_JOBS:
        product = " x ".join(f"{count:,} of {key}" for key, count in counts.items())
        raise UserError(
            f"a sweep of {math.prod(counts.values()):,} jobs ({product}): at most {MAX_JOBS:,} can be run as a grid; "
            "give fewer values, or let hydra/sweeper=random draw some of the jobs"
        )


def build_grid(space: Sequence[Dimension]) -> list[tuple[str, ...]]:
    """Return the overrides of the job for every combination of values.

    Raises:
        UserError: the space has an interval or a subset, of which no grid can be made, or is too large for one.
    """
    for dimension in space:
        if dimension.needs_draws:
            raise UserError(
                f"{dimension.override}: a grid needs lists of values; choose hydra/sweeper=random or optuna"
            )
    check_job_count(space)
    return list(itertools.product(*(dimension.example_overrides for dimension in space)))


def draw_trials(space: Sequence[Dimension], trials: int, seed: int) -> list[tuple[str, ...]]:
    """Return the overrides of the first ``trials`` different draws, or of fewer where the space has no more."""
    jobs = dict.fromkeys(tuple(dimension.draw(seed, trial) for dimension in space) for trial in range(trials))
    for trial in range(trials, MAX_DRAWS_PER_TRIAL * trials):
        if len(jobs) == trials:
            break
        jobs.setdefault(tuple(dimension.draw(seed, trial) for dimension in space))
    return list(jobs)
