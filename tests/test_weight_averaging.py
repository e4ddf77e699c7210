"""The averaged weights of ``optimizer.ema_decay``: a mean at first, then a moving average."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tutelage.runs.weight_averaging import warmed_up_average


def average_weights(decay: float, weights: np.ndarray) -> np.ndarray:
    """Return the averaged weight (T,) after each step, of a network that has these weights (T,) after its steps."""
    network = nn.Linear(1, 1, bias=False).double()
    averaged, averages = AveragedModel(network, avg_fn=warmed_up_average(decay)), []
    for weight in weights:
        nn.init.constant_(network.weight, weight)
        averaged.update_parameters(network)
        averages.append(averaged.module.weight.item())
    return np.array(averages)


def test_the_average_of_a_short_run_is_the_mean_of_its_weights():
    weights = np.random.default_rng(0).normal(size=50)
    assert average_weights(0.999, weights) == pytest.approx(np.cumsum(weights) / np.arange(1, 51), rel=1e-6, abs=1e-6)


def test_the_average_of_a_long_run_moves_with_the_decay():
    weights = np.random.default_rng(1).normal(size=60)
    averages = average_weights(0.9, weights)
    assert averages[9] == pytest.approx(weights[:10].mean(), rel=1e-6)
    for step in range(10, 60):
        assert averages[step] == pytest.approx(0.9 * averages[step - 1] + 0.1 * weights[step], rel=1e-6, abs=1e-6)


def test_buffers_that_no_step_changes_stay_exact_and_counts_are_not_averaged():
    """A run that resumes takes constants from the code: an average of them that drifts would change its results."""
    network = nn.BatchNorm1d(1)
    network.register_buffer("constant", torch.tensor([0.1307, 1 / 3]))
    averaged = AveragedModel(network, avg_fn=warmed_up_average(0.9), use_buffers=True)
    for _ in range(30):
        network(torch.randn(4, 1))
        averaged.update_parameters(network)
    assert torch.equal(averaged.module.constant, network.constant)
    assert averaged.module.num_batches_tracked == 30
