"""Downloads against a server of our own: whole and checked, resumed where they stopped, by one process at a time."""

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tutelage.data.datasets.download import Remote, fetch, ignore_progress, unpack
from tutelage.errors import UserError
from tutelage.storage import cache_folder

CONTENT = np.random.default_rng(0).bytes(5_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
FETCH = """
import sys
from pathlib import Path
from tutelage.data.datasets.download import Remote, fetch
url, md5, size, folder = sys.argv[1:]
print(fetch(Remote(url, md5, int(size)), Path(folder), "Things"))
"""
UNPACK = """
import sys
from pathlib import Path
from tutelage.data.datasets.download import unpack
unpack(Path(sys.argv[1]), Path(sys.argv[2]), "inner")
"""


class Handler(BaseHTTPRequestHandler):
    """Serve ``server.content``, with the faults that the server's attributes set."""

    def do_GET(self):
        server = self.server
        content, first = server.content, 0
        range_header = self.headers.get("Range") if server.ranges else None
        if self.path != "/things.bin":
            self.send_error(404)
            return
        if range_header:
            first = int(range_header.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if range_header else 200)
        if range_header:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        served = [first, 0]  # from where on, how many bytes
        server.served.append(served)
        last = len(content) if server.breaks_off_at is None else server.breaks_off_at
        try:
            for start in range(first, last, 100_000):
                block = content[start : min(start + 100_000, last)]
                if start >= server.halts_at:
                    server.goes_on.wait()
                served[1] += len(block)
                self.wfile.write(block)
        except OSError:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.content, http_server.ranges, http_server.breaks_off_at, http_server.served = CONTENT, True, None, []
    http_server.halts_at, http_server.goes_on = len(CONTENT), threading.Event()
    threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True).start()
    yield http_server
    http_server.shutdown()
    http_server.server_close()


def things(server, name: str = "things.bin") -> Remote:
    return Remote(f"http://127.0.0.1:{server.server_port}/{name}", MD5, len(CONTENT))


def fetching(server, folder: Path) -> subprocess.Popen:
    """Start a process of its own that fetches the things."""
    remote = things(server)
    arguments = [remote.url, remote.md5, str(remote.bytes), str(folder)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", FETCH, *arguments], **pipes)


def test_a_file_is_fetched_once_with_a_line_that_says_so_and_progress_that_grows(server, tmp_path, capsys):
    progress = []
    path = fetch(things(server), tmp_path / "new", "Things", lambda part, fraction: progress.append((part, fraction)))
    assert path.read_bytes() == CONTENT
    line = f"Things: fetching 5 MB from {things(server).url} to {tmp_path / 'new'}\n"
    assert capsys.readouterr().err == line
    fractions = [fraction for _, fraction in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert {part for part, _ in progress} == {"fetching Things"}
    assert fetch(things(server), tmp_path / "new", "Things", ignore_progress) == path
    assert server.served == [[0, len(CONTENT)]]
    assert capsys.readouterr().err == ""
    assert not list(path.parent.glob("*.part"))


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("cifar10") == tmp_path / "tutelage" / "cifar10"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder("cifar10") == Path.home() / ".cache" / "tutelage" / "cifar10"


def test_below_home_the_folder_is_shown_as_one_would_type_it(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    fetch(things(server), cache_folder("things"), "Things")
    assert capsys.readouterr().err.endswith(" to ~/.cache/tutelage/things\n")


def test_a_connection_that_breaks_off_is_an_error_and_the_next_call_fetches_the_rest_only(server, tmp_path, capsys):
    server.breaks_off_at = 2_000_000
    with pytest.raises(UserError) as broken:
        fetch(things(server), tmp_path, "Things")
    message = str(broken.value)
    assert "\n" not in message
    assert "the connection broke off at 2 MB of 5 MB" in message
    assert "the same command goes on from where it stopped" in message
    assert "get things.bin by hand and set data.root=FOLDER" in message
    assert not (tmp_path / "things.bin").exists()
    server.breaks_off_at = None
    assert fetch(things(server), tmp_path, "Things").read_bytes() == CONTENT
    assert server.served == [[0, 2_000_000], [2_000_000, 3_000_000]]
    assert capsys.readouterr().err.endswith(" (going on at 2 MB)\n")


def test_a_killed_process_loses_nothing_that_had_come(server, tmp_path):
    server.halts_at = 2_500_000
    child = fetching(server, tmp_path)
    part = tmp_path / "things.bin.part"
    while not (part.exists() and part.stat().st_size > 2_000_000):
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    child.kill()
    child.communicate()
    server.goes_on.set()
    received = part.stat().st_size
    assert received < len(CONTENT)
    assert fetch(things(server), tmp_path, "Things").read_bytes() == CONTENT
    assert server.served[-1] == [received, len(CONTENT) - received]


def test_a_part_that_is_whole_already_is_checked_without_the_network(tmp_path):
    (tmp_path / "things.bin.part").write_bytes(CONTENT)
    nowhere = Remote("http://127.0.0.1:9/things.bin", MD5, len(CONTENT))
    assert fetch(nowhere, tmp_path, "Things").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path, capsys):
    server.ranges = False
    (tmp_path / "things.bin.part").write_bytes(b"x" * 1_000)
    assert fetch(things(server), tmp_path, "Things").read_bytes() == CONTENT
    assert server.served == [[0, len(CONTENT)]]
    assert "going on" not in capsys.readouterr().err


def test_a_part_longer_than_the_file_is_begun_anew(server, tmp_path):
    (tmp_path / "things.bin.part").write_bytes(CONTENT + b"x")
    assert fetch(things(server), tmp_path, "Things").read_bytes() == CONTENT


@pytest.mark.parametrize("stored", [b"", b"x" * 1_000])
def test_what_came_damaged_is_removed_and_never_takes_the_name(server, tmp_path, stored):
    server.content = b"y" + CONTENT[1:]
    (tmp_path / "things.bin.part").write_bytes(stored)
    with pytest.raises(
        UserError, match=r"Things: .* arrived damaged \(its MD5 is \w+, not \w+\) and was removed"
    ) as wrong:
        fetch(things(server), tmp_path, "Things")
    assert "\n" not in str(wrong.value)
    assert not list(tmp_path.glob("things*"))


def test_two_processes_at_once_fetch_once(server, tmp_path):
    server.halts_at = 2_500_000
    first = fetching(server, tmp_path)
    assert first.stderr.readline().startswith("Things: fetching")
    second = fetching(server, tmp_path)
    assert "another process is fetching things.bin; waiting" in second.stderr.readline()
    server.goes_on.set()
    for child in (first, second):
        out, err = child.communicate(timeout=200)
        assert (out, err, child.returncode) == (f"{tmp_path / 'things.bin'}\n", "", 0)
    assert server.served == [[0, len(CONTENT)]]
    assert (tmp_path / "things.bin").read_bytes() == CONTENT


def test_a_server_that_is_not_there_or_lacks_the_file_is_an_error_of_one_line(server, tmp_path):
    for remote, message in (
        (things(server, "other.bin"), "HTTP Error 404: Not Found"),
        (Remote("http://127.0.0.1:9/things.bin", MD5, 1), "Connection refused"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            fetch(remote, tmp_path, "Things")
        assert "\n" not in str(refused.value)
        assert str(refused.value).startswith(f"Things: {remote.url} cannot be fetched")


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(server):
    with pytest.raises(UserError, match=r"/proc/x: cannot be written .* XDG_CACHE_HOME .* data.root=FOLDER"):
        fetch(things(server), Path("/proc/x"), "Things")


def test_only_the_web_is_fetched_from():
    with pytest.raises(ValueError, match="only http and https"):
        Remote("file:///etc/passwd", MD5, 1)


def tar_gz(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def test_an_archive_is_unpacked_once(tmp_path):
    archive = tar_gz(tmp_path / "a.tar.gz", {"inner/one": b"1", "inner/two": b"2"})
    assert unpack(archive, tmp_path / "to", "inner") == tmp_path / "to" / "inner"
    assert (tmp_path / "to" / "inner" / "one").read_bytes() == b"1"
    archive.unlink()
    assert unpack(archive, tmp_path / "to", "inner") == tmp_path / "to" / "inner"


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    archive = tar_gz(tmp_path / "a.tar.gz", {"inner/one": b"1"})
    (tmp_path / ".partial-inner" / "inner").mkdir(parents=True)
    (tmp_path / ".partial-inner" / "inner" / "old").write_bytes(b"half")
    assert [path.name for path in unpack(archive, tmp_path, "inner").iterdir()] == ["one"]
    assert not (tmp_path / ".partial-inner").exists()


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "truncated": content[:middle],
        "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "wrong checksum": content[:-8] + b"1234" + content[-4:],
        "no archive": b"<html>not found</html>",
        "empty": b"",
    }


@pytest.mark.parametrize("damage", damaged(b"0123456789"))
def test_a_damaged_archive_is_an_error_and_leaves_nothing(tmp_path, damage):
    content = tar_gz(tmp_path / "a.tar.gz", {"inner/one": CONTENT[:200_000]}).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(damaged(content)[damage])
    with pytest.raises(UserError, match=r"a.tar.gz: cannot be unpacked \(.*\): it is damaged; remove it") as wrong:
        unpack(tmp_path / "a.tar.gz", tmp_path, "inner")
    assert "\n" not in str(wrong.value)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["a.tar.gz"]


def test_another_archive_and_one_that_reaches_out_of_its_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no folder inner"):
        unpack(tar_gz(tmp_path / "a.tar.gz", {"other/one": b"1"}), tmp_path, "inner")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tar_gz(tmp_path / "b.tar.gz", {"inner/one": b"1", "../../out": b"1"}), tmp_path, "inner")
    assert not (tmp_path / "inner").exists()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path.parent / "out").exists()


def test_two_processes_at_once_unpack_one_archive(tmp_path):
    archive = tar_gz(tmp_path / "a.tar.gz", {f"inner/{number}": CONTENT[:1_000_000] for number in range(20)})
    children = [subprocess.Popen([sys.executable, "-c", UNPACK, str(archive), str(tmp_path)]) for _ in range(2)]
    assert [child.wait(timeout=200) for child in children] == [0, 0]
    assert len(list((tmp_path / "inner").iterdir())) == 20
