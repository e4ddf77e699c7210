"""A sweeper of independent random draws.

It replaces hydra-optuna-sweeper with its random sampler: here a draw is a function of the search's seed, the trial's
number and the key alone, so that more trials, or further keys, leave the others as they are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra_plugins.tutelage_sweepers.grid import GridSweeper

if TYPE_CHECKING:
    from tutelage.sweeps.space import Dimension


class RandomSweeper(GridSweeper):
    """Runs a number of different draws from the space."""

    def run_space(self, space: "Sequence[Dimension]") -> None:
        """Run the jobs that are drawn."""
        from tutelage.sweeps.space import draw_trials

        self.run_all(draw_trials(space, self.settings.trials, self.settings.seed))
