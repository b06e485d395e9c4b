"""A headless Chromium, spoken to in its own protocol through a pair of pipes."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SECONDS = 60


class Page:
    """One open page; messages: what it said on its console, errors among it."""

    def __init__(self, send, receive):
        self._send, self._receive = send, receive
        self._number, self._session = 0, None
        self.messages = []
        self._waiting = []

    def call(self, method, **params):
        """The result of a method of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send(message)
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _next(self):
        found = self._receive()
        if found.get("method") in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
        ):
            self.messages.append(found["params"])
        if found.get("method") == "Page.loadEventFired":
            self._waiting.append(found)
        return found

    def attach(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, path, width, height=900, dark=False):
        """Load a file from disk at a width in CSS pixels, in light or dark mode."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._waiting.clear()
        self.call("Page.navigate", url=f"file://{path}")
        while not self._waiting:
            self._next()

    def evaluate(self, script):
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path, whole=True):
        """Write the whole page as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def opened(folder):
    """A `Page` of a browser that keeps its files in `folder`."""
    to_read, to_browser = os.pipe()
    from_browser, to_write = os.pipe()
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage", "--remote-debugging-pipe",
        f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    # The browser reads commands from 3 and answers on 4.
    shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    pending = bytearray()

    def send(message):
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(to_browser, data) :]

    def receive():
        end = time.monotonic() + SECONDS
        while b"\0" not in pending:
            ready, _, _ = select.select([from_browser], [], [], end - time.monotonic())
            assert ready, f"the browser said nothing for {SECONDS} s"
            part = os.read(from_browser, 1 << 20)
            assert part, "the browser has ended"
            pending.extend(part)
        whole, _, rest = bytes(pending).partition(b"\0")
        pending[:] = rest
        return json.loads(whole)

    try:
        page = Page(send, receive)
        page.attach()
        yield page
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
