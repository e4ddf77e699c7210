"""``tutelage fetch``, and weights of a tag: from a hub of our own, whose files are whole, broken off or not there."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save

from helpers.forks import fork
from tutelage import cli
from tutelage.app.fetch import fetch_files
from tutelage.app.job import locate_run
from tutelage.config.compose import compose
from tutelage.data.datasets.download import Remote
from tutelage.errors import UserError
from tutelage.models.weights import published
from tutelage.models.weights.published import fetch_weights, find_cached
from tutelage.models.weights.sources import read_pretrained
from tutelage.runs.observer import Observer

TAG = "timm:test_resnet.r160_in1k"  # timm's smallest ResNet
HUB_PATH = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
PYTHON_HUB_PATH = HUB_PATH.replace("model.safetensors", "pytorch_model.bin")
COMMIT = "0123456789" * 4


class Handler(BaseHTTPRequestHandler):
    """Serve ``server.files`` as the hub does; break off each content after ``server.breaks_off_at`` bytes."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        content = self.answer()
        self.wfile.write(content[: self.server.breaks_off_at])

    def answer(self):
        self.server.requests.append((self.command, self.path))
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        content = content or b""
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        return content

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that the hub's client asks in place of the hub, and empty caches."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.breaks_off_at = {}, [], None
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model("test_resnet")


@pytest.mark.parametrize("path", [HUB_PATH, PYTHON_HUB_PATH])
def test_weights_are_downloaded_once_and_then_read_without_the_network(hub, network, path, tmp_path):
    if path == HUB_PATH:
        hub.files[path] = save(network.state_dict())
    else:
        torch.save(network.state_dict(), tmp_path / "w.bin")
        hub.files[path] = (tmp_path / "w.bin").read_bytes()
    assert find_cached(TAG) is None
    file = fetch_weights(TAG)
    assert file.read_bytes() == hub.files[path]
    hub.requests.clear()
    assert find_cached(TAG) == fetch_weights(TAG) == file
    weights = read_pretrained(TAG)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in weights.tensors.items())
    assert weights.mean == timm.get_pretrained_cfg("test_resnet").mean
    assert hub.requests == []


def test_a_download_that_breaks_off_leaves_no_weights_and_the_next_one_is_whole(hub, network, monkeypatch):
    hub.files[HUB_PATH] = save(network.state_dict())
    hub.breaks_off_at = 1000
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=f"init_from={TAG}: cannot be had"):
        fetch_weights(TAG)
    assert find_cached(TAG) is None
    hub.breaks_off_at = None
    assert fetch_weights(TAG).read_bytes() == hub.files[HUB_PATH]


def test_two_processes_that_fetch_at_once_both_get_whole_weights(hub, network):
    hub.files[HUB_PATH] = save(network.state_dict())
    children = [fork(lambda: fetch_weights(TAG).read_bytes() != hub.files[HUB_PATH]) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def test_weights_that_cannot_be_had_end_in_one_line_with_each_way_out(hub, monkeypatch):
    with pytest.raises(UserError, match=r"on the hub has no model.safetensors or pytorch_model.bin; name another tag"):
        fetch_weights(TAG)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="OfflineModeIsEnabled") as refused:
        fetch_weights(TAG)
    assert "\n" not in str(refused.value)
    for way_out in ("run 'tutelage fetch'", f"init_from={published.INSTALLED}", "init_from=null"):
        assert way_out in str(refused.value)


def test_torchvisions_files_are_checked_against_the_digest_in_their_names(hub, monkeypatch):
    content = np.random.default_rng(0).bytes(10_000)
    path = f"/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    hub.files[path], hub.breaks_off_at = content, 9_999
    weights = SimpleNamespace(url=hub.address + path)
    monkeypatch.setattr(published, "find_torchvision_weights", lambda source: weights)
    with pytest.raises(UserError, match="invalid hash value"):
        fetch_weights("torchvision:resnet18")
    assert find_cached("torchvision:resnet18") is None
    hub.breaks_off_at = None
    assert fetch_weights("torchvision:resnet18").read_bytes() == content
    hub.requests.clear()
    assert fetch_weights("torchvision:resnet18") == find_cached("torchvision:resnet18")
    assert hub.requests == []
    with pytest.raises(UserError, match=r"resnet18-\w{8}\.pth cannot be read \(.*\); remove it to fetch it again"):
        read_pretrained("torchvision:resnet18")  # its bytes are no weights


def test_each_thing_has_a_line_on_what_it_is_how_large_and_where(hub, network, monkeypatch, tmp_path):
    hub.files[HUB_PATH], images = save(network.state_dict()), np.random.default_rng(0).bytes(2_000_000)
    hub.files["/images.gz"] = images
    remote = Remote(f"{hub.address}/images.gz", hashlib.md5(images).hexdigest(), len(images))
    monkeypatch.setattr(
        "tutelage.data.datasets.mnist.MNIST", SimpleNamespace(cache_name="m", title="M", files=[remote])
    )
    configs = [compose([f"init_from={TAG}", "model=timm", f"data={name}"]) for name in ("mnist", "digits")]
    first, second = (list(fetch_files(configs, Observer())) for _ in range(2))
    size = f"{len(hub.files[HUB_PATH]) / 1e6:,.0f}"
    assert first == [
        f"init_from={TAG}: {size} MB, fetched: {find_cached(TAG)}",
        f"data: MNIST: 2 MB, fetched: {tmp_path / 'cache' / 'tutelage' / 'm'}",
        "data: Digits: nothing to fetch",
    ]
    assert second == [line.replace("fetched:", "already there:") for line in first]


def test_a_dataset_of_the_hub_is_fetched_once_and_one_on_the_disk_not_at_all(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    cache = tmp_path / "cache"

    def load_dataset(name):
        if not cache.exists():
            features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
            columns = {"image": [Image.new("L", (8, 8))] * 2, "label": [0, 1]}
            datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features)).save_to_disk(cache)
        return datasets.load_from_disk(str(cache))

    def unreachable(name):
        raise ConnectionError(f"Couldn't reach {name}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    on_the_hub, on_the_disk = (
        compose(["data=huggingface", "recipe=none", f"data.root={root}", "data.image_size=28"])
        for root in ("some/things", cache)
    )
    (first,), (second,) = (list(fetch_files([on_the_hub], Observer())) for _ in range(2))
    assert re.fullmatch(rf"data: HuggingFace data.root=some/things: [\d.]+ kB, fetched: {cache}/train", first)
    assert second == first.replace("fetched:", "already there:")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert list(fetch_files([on_the_disk], Observer())) == [f"data: HuggingFace data.root={cache}: nothing to fetch"]
    with pytest.raises(UserError, match=r"the hub cannot be asked for it .* run 'tutelage fetch' with the same"):
        list(fetch_files([on_the_hub], Observer()))


def test_the_command_fetches_for_every_value_of_a_sweep_and_says_what_needs_no_fetching(monkeypatch, capsys, tmp_path):
    (tmp_path / "a").mkdir()
    arguments = [
        "-m",
        f"data.root={tmp_path / 'a'},{tmp_path / 'b'}",
        "data=image_folder",
        "recipe=none",
        "data.image_size=28",
    ]
    monkeypatch.setattr(sys, "argv", ["tutelage", "fetch", *arguments])
    cli.main()
    expected = [f"data: ImageFolder data.root={tmp_path / name}: nothing to fetch" for name in "ab"]
    assert capsys.readouterr().out.splitlines() == expected


def test_initial_weights_that_are_missing_are_named_before_the_data_is_looked_through(tmp_path):
    overrides = ["data=image_folder", "recipe=none", f"data.root={tmp_path / 'none'}", "data.image_size=28"]
    with pytest.raises(UserError, match=r"init_from=package:nowhere/w\.pth: no package nowhere is installed here"):
        locate_run(compose([*overrides, "init_from=package:nowhere/w.pth"]))
    with pytest.raises(UserError, match="data.root"):
        locate_run(compose(overrides))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tutelage.train", "tutelage.cli"])
def test_a_run_without_network_ends_in_one_line_before_its_data_is_read(module, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", module, *(["fetch"] if module == "tutelage.cli" else [])]
    command += ["data=mnist", "model=timm", "model.name=test_resnet", f"init_from={TAG}", "callbacks=quiet"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()  # MNIST is not in the cache: reading it would say so
    assert line.startswith(f"tutelage: init_from={TAG}: cannot be had (OfflineModeIsEnabled")
