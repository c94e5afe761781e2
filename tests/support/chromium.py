"""A real Chromium, headless, spoken to by the DevTools protocol over two pipes: no driver, no port, no download.

https://chromedevtools.github.io/devtools-protocol/; --remote-debugging-pipe: JSON on descriptors 3 and 4, each message
ended by a NUL byte.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from programs import program

# as root and in a container: no sandbox, no GPU, no /dev/shm of a useful size; and nothing that calls home
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
ANSWER_S = 60.0
READ_BYTES = 1 << 16


class Chromium:
    """One browser with one page. Owns the process, both pipes and its directory.

    What goes wrong inside the page is kept: ``complaints`` (console errors, exceptions, refusals by the policy) and
    ``requests`` (every address that was asked for).
    """

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._session = ""
        self._heard = b""

    def __enter__(self) -> Self:
        path = program("chromium", package="chromium")
        # not pytest's: the path of a socket in it must be short (unix(7): 108 bytes)
        self._kept = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._directory = Path(self._kept.name)
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        # above what they are to become, so that putting one in place does not close the other
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (their_in, their_out)]
        os.close(their_in)
        os.close(their_out)

        def place() -> None:
            for target, fd in zip((3, 4), theirs, strict=True):
                os.dup2(fd, target)

        home = {"HOME": str(self._directory), "XDG_CONFIG_HOME": str(self._directory), "TMPDIR": str(self._directory)}
        with (self._directory / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [path, *FLAGS, f"--user-data-dir={self._directory / 'profile'}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **home},
                start_new_session=True,
                preexec_fn=place,  # noqa: PLW1509  # it only moves descriptors
                pass_fds=(3, 4),
            )
        for fd in theirs:
            os.close(fd)
        try:
            (target,) = (one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
            attached = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        # it leads a group of its own, and is not waited for yet
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._kept.cleanup()

    # -- what a test asks ---------------------------------------------------------------------------------------------

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_S
        while True:
            answer = self._next(deadline)
            assert answer is not None, f"{method}: no answer within {ANSWER_S:g} s"
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                found: dict[str, Any] = answer["result"]
                return found

    def go(self, url: str) -> None:
        answer = self.ask("Page.navigate", url=url)
        assert not answer.get("errorText"), answer

    def value(self, expression: str) -> Any:
        """What an expression gives in the page; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What is seen of an element; empty where there is none or it is hidden."""
        quoted = json.dumps(selector)
        found: str = self.value(
            f"(node => node && node.checkVisibility() ? node.innerText : '')(document.querySelector({quoted}))"
        )
        return found

    def until(self, selector: str, *words: str, timeout_s: float = 40.0) -> str:
        """Wait until an element is seen and has all these words; its text."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.text(selector)
            if text and all(word in text for word in words):
                return text
            assert time.monotonic() < deadline, (
                f"{selector} has not {words} after {timeout_s:g} s: {text!r}\n{self.text('body')}\n{self.complaints}"
            )
            self._next(time.monotonic() + 0.05)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of what is seen of it."""
        quoted = json.dumps(selector)
        x, y = self.value(
            f"(node => {{ node.scrollIntoView({{block: 'center'}}); const at = node.getBoundingClientRect();"
            f" return [at.x + at.width / 2, at.y + at.height / 2]; }})(document.querySelector({quoted}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, *, code: int, text: str = "") -> None:
        """One key of the keyboard; ``code``: its Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def media(self, **features: str) -> None:
        """How the person likes it: ``prefers_color_scheme="dark"``."""
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.ask("Emulation.setEmulatedMedia", features=told)

    def screen(self, width: int, height: int, *, phone: bool = False) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A screenshot."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    # -- the line to it -----------------------------------------------------------------------------------------------

    def _next(self, deadline: float) -> Mapping[str, Any] | None:
        """The next message, an event noted by the way; None: none came before the deadline."""
        while b"\0" not in self._heard:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._in, READ_BYTES)
            if not data:
                raise AssertionError(f"Chromium has ended: {(self._directory / 'chromium.log').read_text()[-3000:]}")
            self._heard += data
        raw, _, self._heard = self._heard.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in {"error", "warning", "assert"}:
                self.complaints.append(json.dumps(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case _:
                pass
