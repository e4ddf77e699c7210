"""The end of a sweep: its tables on the terminal, and its page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.config import SweeperConfig
from tutelage.report import label_efficiency
from tutelage.report.ensembles import describe_ensembles
from tutelage.report.folds import pool_folds
from tutelage.report.jobs import TEST_MEASURE, shorten_key
from tutelage.report.networks import Network, collect_networks, list_metrics, name_metric
from tutelage.report.sweep_page import write_sweep_page
from tutelage.report.sweep_results import SweepResults, read_sweep
from tutelage.sweeps.folder import Outcome
from tutelage.terminal.intervals import NO_VALUE
from tutelage.terminal.table import print_uncut


@dataclass(frozen=True)
class ResultTable:
    """A table of texts; its first ``name_columns`` columns are names, aligned left."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    name_columns: int

    def print(self) -> None:
        """Print the table."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, name in enumerate(self.head):
            table.add_column(name, justify="left" if number < self.name_columns else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        print_uncut(table)


def report_sweep(outcomes: Sequence[Outcome], command: str, search: SweeperConfig | None = None) -> None:
    """Print one table over the runs of a sweep, and write its page.

    Runs that differ only in seed and fold make one row: the mean, and with several runs the standard deviation. The
    test accuracy is pooled over folds.

    Args:
        outcomes: how each job of the sweep ended.
        command: the command that started the sweep; another command has another page.
        search: the settings of a search, which must not see the test set; None if the sweep is not a search.
    """
    sweep = read_sweep(outcomes, command, search)
    if sweep.jobs:
        _tabulate_settings(sweep).print()
    for line in sweep.failures:
        print(line)
    if not sweep.jobs:
        return
    networks = collect_networks(sweep.keys, sweep.jobs)
    second_table = (
        ResultTable(*label_efficiency.tabulate_lines(sweep.label_lines), 1)
        if sweep.label_lines
        else _tabulate_networks(sweep.keys, networks)
    )
    if second_table is not None:
        print()
        second_table.print()
    best = [] if sweep.best is None else sweep.best.describe(sweep.objective)
    for line in [*sweep.gains, *describe_ensembles(sweep.ensembles), *best, *sweep.search_notes, *sweep.data_notes]:
        print(line)
    print(f"report: {write_sweep_page(sweep, networks)}")


def _tabulate_settings(sweep: SweepResults) -> ResultTable:
    """Return the table of all measures that at least one run has, the best settings on validation first."""
    rows = []
    for members in sweep.groups:
        row = [*(members[0].settings.get(key, "") for key in sweep.keys), str(len(members))]
        for measure in sweep.measures:
            if measure is TEST_MEASURE and (pooled := pool_folds(members)) is not None:
                row.append(str(pooled))
                continue
            values = measure.read_all(members)
            mean = measure.format(float(np.mean(values))) if values else NO_VALUE
            has_deviation = measure.is_share and len(values) > 1
            row.append(f"{mean} +- {100 * np.std(values, ddof=1):.1f}" if has_deviation else mean)
        rows.append(row)
    head = [*map(shorten_key, sweep.keys), "runs", *(measure.heading for measure in sweep.measures)]
    return ResultTable(head, rows, len(sweep.keys))


def _tabulate_networks(keys: Sequence[str], networks: Sequence[Network]) -> ResultTable | None:
    """Return the table of every trained network; None if there are none to compare."""
    if not networks:
        return None
    metrics = list_metrics(networks)
    head = [*map(shorten_key, keys), "network", "runs", *map(name_metric, metrics)]
    rows = [
        [*each.settings, each.name, str(len(each.jobs)), *(_format_metric(each, metric) for metric in metrics)]
        for each in networks
    ]
    return ResultTable(head, rows, len(keys) + 1)


def _format_metric(network: Network, metric: str) -> str:
    """Return the mean of a metric over a network's runs in percent and, with several runs, their standard deviation."""
    if metric not in network.accuracies:
        return NO_VALUE
    values, mean = network.accuracies[metric], f"{network.average(metric):.1f} %"
    return f"{mean} +- {values.std(ddof=1):.1f}" if len(values) > 1 else mean
