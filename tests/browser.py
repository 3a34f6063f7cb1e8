"""A page in headless Chromium, driven through a pipe by the DevTools protocol."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 30  # for one answer


class Page:
    """What was opened, and what it complained of."""

    def __init__(self, commands: int, answers: int):
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._count, self._session, self._rest = 0, None, b""
        self.complaints: list[str] = []  # of the console, and exceptions
        self.requests: list[str] = []  # addresses

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Loads a file in a window of so many pixels."""
        self.complaints, self.requests = [], []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=path.resolve().as_uri())
        while self.run("document.readyState") != "complete":
            pass
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str):
        """The value of an expression, awaited."""
        told = self._ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Of what is seen, or of the ``whole`` page."""
        told = self._ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._commands.close()
        self._answers.close()

    def _ask(self, method: str, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._count:
                assert "error" not in told, told["error"]
                return told["result"]
            self._hear(told)

    def _next(self):
        while b"\0" not in self._rest:
            read = os.read(self._answers.fileno(), 2**20)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _hear(self, told) -> None:
        method, parameters = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser of its own, with its files in a folder."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()

    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    command += [f"--user-data-dir={folder}", "--no-first-run", "--hide-scrollbars"]
    # It reads from 3 and writes to 4.
    shell = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "bash", *command]
    process = subprocess.Popen(
        shell,
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    page = Page(to_write, from_read)
    try:
        yield page
    finally:
        page.close()
        process.terminate()
        process.wait(SECONDS)
