"""Pages in headless Chromium: how they look, what the browser made of them and what it complained about.

Chromium speaks its DevTools protocol over two pipes (``--remote-debugging-pipe``): JSON messages, each ended by a zero
byte. That needs neither a port nor a library, and windows may be as narrow as a phone.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import pytest

NARROW, LAPTOP, WIDE = 400, 1280, 1920  # widths of windows in CSS pixels
HEIGHT = 900
ANSWER_SECONDS = 60.0
COMMANDS, ANSWERS = 3, 4  # the file descriptors of the protocol in Chromium's process
BLOCK = 1 << 16
AXE_VERSION, AXE_FOLDER = "4.10.3", "~/.cache/tutelage/axe"
AXE = Path(AXE_FOLDER).expanduser() / "node_modules/axe-core/axe.min.js"
BAD_FAULTS = ("serious", "critical")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root, as in a container, cannot use
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

Message = dict[str, Any]


def find_chromium() -> str:
    """Return Chromium's path; without it the test is skipped, or fails in CI, which installs it."""
    path = shutil.which("chromium")
    if path is None:
        end_test = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        end_test("needs Chromium: apt-get install chromium")
    return path


def find_axe() -> str:
    """Return the script of axe-core, which finds what keeps readers out; without it as ``find_chromium``."""
    if not AXE.exists():
        end_test = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        end_test(f"needs axe-core: npm install --prefix {AXE_FOLDER} axe-core@{AXE_VERSION}")
    return AXE.read_text()


@dataclass(frozen=True)
class View:
    """A page as Chromium shows it.

    Attributes:
        complaints: what the page wrote to the console, exceptions, and files that it could not load.
        dom: the document as HTML, after its scripts.
        text: what a reader sees, without hidden parts.
        screenshot: the whole page from top to bottom as PNG.
        value: what the script that clicked and typed has returned.
        content_width: in CSS pixels; more than the window's width means that a reader must scroll sideways.
    """

    complaints: tuple[str, ...]
    dom: str
    text: str
    screenshot: bytes
    value: Any
    content_width: int


class Chromium:
    """A headless Chromium, which the end of a ``with`` block ends."""

    def __init__(self) -> None:
        program = find_chromium()
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self._numbers, self._unread, self._events = itertools.count(1), b"", list[Message]()
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile}"],
            preexec_fn=lambda: _install_descriptors(commands, answers),  # noqa: PLW1509 - only system calls
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._commands)  # at which Chromium ends
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._answers)
        shutil.rmtree(self._profile, ignore_errors=True)

    def show(
        self,
        file: Path,
        width: int = LAPTOP,
        scheme: Literal["light", "dark"] = "light",
        media: Literal["screen", "print"] = "screen",
        script: str = "",
    ) -> View:
        """Return a page opened by ``file://``, after a script that may click and type in it."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._events.clear()
        for domain in ("Runtime", "Log", "Page"):
            self._call(f"{domain}.enable", session)
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", session, **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", session, media=media, features=features)
        self._call("Page.navigate", session, url=file.resolve().as_uri())
        self._wait_for("Page.loadEventFired")
        value = self._evaluate(session, script) if script else None
        view = View(
            value=value,
            dom=self._evaluate(session, "document.documentElement.outerHTML"),
            text=self._evaluate(session, "document.body.innerText"),
            content_width=self._evaluate(session, "document.documentElement.scrollWidth"),
            screenshot=self._take_screenshot(session),
            complaints=tuple(filter(None, map(_describe_complaint, self._events))),
        )
        self._call("Target.closeTarget", targetId=target)
        return view

    def find_faults(self, file: Path, scheme: Literal["light", "dark"] = "light") -> list[str]:
        """Return the serious and critical faults that axe finds on a page, a line each."""
        script = f"{find_axe()}; axe.run().then((found) => found.violations)"
        return [
            f"{fault['id']}: {fault['nodes'][0]['html']}: {fault['nodes'][0]['failureSummary']}"
            for fault in self.show(file, scheme=scheme, script=script).value
            if fault["impact"] in BAD_FAULTS
        ]

    def _take_screenshot(self, session: str) -> bytes:
        whole = self._call("Page.getLayoutMetrics", session)["cssContentSize"] | {"scale": 1}
        picture = self._call("Page.captureScreenshot", session, captureBeyondViewport=True, clip=whole)
        return base64.b64decode(picture["data"])

    def _evaluate(self, session: str, script: str) -> Any:
        """Return the value of a script; what it promises is waited for."""
        answer = self._call(
            "Runtime.evaluate", session, expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> Message:
        """Return the result of a command of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _wait_for(self, event: str) -> None:
        while not any(each.get("method") == event for each in self._events):
            self._events.append(self._read())

    def _read(self) -> Message:
        """Return Chromium's next message."""
        end = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._unread:
            is_ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            block = os.read(self._answers, BLOCK) if is_ready else b""
            assert block, "Chromium ended" if is_ready else f"no answer of Chromium in {ANSWER_SECONDS:.0f} s"
            self._unread += block
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


def _install_descriptors(commands: int, answers: int) -> None:
    """Give the pipes' ends, in the child, the numbers that Chromium expects."""
    # copies above both numbers: one of the pipes' own may be the other's, or be closed as it is
    copies = [fcntl.fcntl(pipe, fcntl.F_DUPFD, ANSWERS + 1) for pipe in (commands, answers)]
    os.dup2(copies[0], COMMANDS)
    os.dup2(copies[1], ANSWERS)


def _describe_complaint(event: Message) -> str | None:
    """Return a line for an event that is a complaint."""
    parameters = event.get("params", {})
    if event.get("method") == "Runtime.exceptionThrown":
        details = parameters["exceptionDetails"]
        return details.get("exception", {}).get("description", details["text"])
    if event.get("method") == "Runtime.consoleAPICalled":
        return " ".join(str(each.get("value", each.get("description"))) for each in parameters["args"])
    if event.get("method") == "Log.entryAdded":
        return f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}"
    return None
