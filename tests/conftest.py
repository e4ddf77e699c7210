"""Settings for every test: one thread, no internet access, commands in forks of one server. See also tests/helpers."""

import atexit
import os
import shutil
import tempfile

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no threads that a fork would lack
os.environ["OMP_WAIT_POLICY"] = "passive"  # commands that use both cores share them with other tests
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tutelage-tests-")  # the user's cache is not touched
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # detects a GPU without initialising CUDA, so that forks can use it

from pathlib import Path

import hypothesis
import pytest

from helpers import fork_server
from helpers.paths import ROOT

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ["MPLCONFIGDIR"] = str(ROOT / ".pytest_cache" / "matplotlib")  # its list of fonts takes a second to make
if fork_server.ADDRESS not in os.environ:  # in the first process of the tests
    atexit.register(fork_server.stop, fork_server.start())


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"
