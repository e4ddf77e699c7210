"""The networks that the runs of a sweep trained, such as teachers and controls beside the final one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.report.folds import has_folds
from tutelage.report.gains import TEST_ACCURACY, collect_accuracies
from tutelage.report.jobs import Job, group_jobs


@dataclass(frozen=True)
class Network:
    """A network that all runs of one setting trained.

    Attributes:
        settings: the values of what the sweep varied.
        name: the network's.
        jobs: the setting's N runs.
        accuracies: for each metric, its values (N,) in percent.
    """

    settings: Sequence[str]
    name: str
    jobs: Sequence[Job]
    accuracies: Mapping[str, np.ndarray]

    def average(self, metric: str) -> float:
        """Return the mean of a metric in percent; that of ``test`` is over images, of which folds differ in number."""
        weights = [job.test_images for job in self.jobs] if self.is_pooled(metric) else None
        return float(np.average(self.accuracies[metric], weights=weights))

    def is_pooled(self, metric: str) -> bool:
        """Return whether a metric is taken over the test images of several folds."""
        return metric == TEST_ACCURACY and has_folds(self.jobs)


def collect_networks(keys: Sequence[str], jobs: Sequence[Job]) -> list[Network]:
    """Return every network that the runs of each setting trained; none if each run trained only one."""
    groups = group_jobs(keys, jobs)
    networks = [
        Network(settings, name, members, accuracies)
        for settings, members in groups.items()
        for name, accuracies in collect_accuracies([job.record for job in members]).items()
    ]
    return networks if len(networks) > len(groups) and list_metrics(networks) else []


def list_metrics(networks: Sequence[Network]) -> list[str]:
    """Return the metrics that at least one network has."""
    return list(dict.fromkeys(metric for network in networks for metric in network.accuracies))


def name_metric(metric: str) -> str:
    """Return the heading of a metric's column: ``test``, the name of a further test set, or a task's name."""
    prefix, _, name = metric.partition("/")
    return prefix if name == "accuracy" else name
