"""A real browser without a screen: what a page becomes in it, what it says, and whom it asks."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDED = BROWSER is not None or "CI" in os.environ
"""In CI a missing browser is a failure and not a reason to skip."""
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0",
)  # fmt: skip
CONSOLE = re.compile(r"CONSOLE[:(].*")
DARK = "--blink-settings=preferredColorScheme=0"


class Browser:
    """Chromium with a profile of its own, and with all of its network led to a listener on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.asked: list[str] = []
        """The first line of every request, and the Host that it names."""
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()

    def dom(self, page: Path) -> tuple[str, list[str]]:
        """The document after the page was loaded, and what the console said."""
        done = self._run("--dump-dom", page.as_uri())
        return done.stdout, CONSOLE.findall(done.stderr)

    def screenshot(self, page: Path, *flags: str, width: int = 900, height: int = 1600) -> Path:
        """A picture of the page."""
        picture = self._folder / f"{page.stem}-{width}{''.join(flags)[-1:]}.png"
        self._run(f"--screenshot={picture}", f"--window-size={width},{height}", *flags, page.as_uri())
        return picture

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert BROWSER is not None, "no chromium: apt-get install chromium"
        host, port = self._listener.getsockname()
        network = (f"--proxy-server=http://{host}:{port}", "--proxy-bypass-list=<-loopback>")
        command = [BROWSER, *QUIET, *network, f"--user-data-dir={self._folder / 'profile'}", *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=True,
            stdin=subprocess.DEVNULL,
        )

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self.asked.append(connection.recv(4096).decode(errors="replace"))
                    connection.sendall(b"HTTP/1.1 503 No network\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    continue
