"""Independent draws from what a sweep varies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra_plugins.tutelage_sweepers.grid import GridSweeper

if TYPE_CHECKING:
    from tutelage.sweeps.space import Dimension


class RandomSweeper(GridSweeper):
    """Runs a number of draws; each follows from the search's seed and its own number alone."""

    def go_through(self, space: "Sequence[Dimension]") -> None:
        """Run the draws."""
        from tutelage.sweeps.space import draws

        self.run_all(draws(space, self.settings.trials, self.settings.seed))
