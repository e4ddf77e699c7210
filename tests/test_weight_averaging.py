"""The averaged weights of ``optimizer.ema_decay``: a mean at first, then a moving average."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tutelage.runs.weight_averaging import WarmedUpAveraging


def average_weights(decay: float, weights: np.ndarray) -> np.ndarray:
    """Return the averaged weight (T,) after each step, of a network that has these weights (T,) after its steps."""
    callback, network = WarmedUpAveraging(decay), nn.Linear(1, 1, bias=False).double()
    callback._average_model = AveragedModel(network)
    averages = []
    for step, weight in enumerate(weights, start=1):
        nn.init.constant_(network.weight, weight)
        callback.on_train_batch_end(SimpleNamespace(global_step=step), network, None, None, step)
        averages.append(callback._average_model.module.weight.item())
    return np.array(averages)


def test_the_average_of_a_short_run_is_the_mean_of_its_weights():
    weights = np.random.default_rng(0).normal(size=50)
    assert average_weights(0.999, weights) == pytest.approx(np.cumsum(weights) / np.arange(1, 51))


def test_the_average_of_a_long_run_moves_with_the_decay():
    weights = np.random.default_rng(1).normal(size=60)
    averages = average_weights(0.9, weights)
    assert averages[9] == pytest.approx(weights[:10].mean())
    for step in range(10, 60):
        assert averages[step] == pytest.approx(0.9 * averages[step - 1] + 0.1 * weights[step])


def test_weights_are_averaged_after_steps_and_not_after_epochs():
    callback = WarmedUpAveraging(0.9)
    callback._average_model = AveragedModel(nn.Linear(1, 1))
    assert callback.should_update(step_idx=0)
    assert not callback.should_update(epoch_idx=0)
    assert torch.equal(callback._average_model.n_averaged, torch.tensor(0))
