"""A real market in its own process: `algomart up` on a free port, waited for, stopped or killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.ports import free_port

START_S = 120.0
STOP_S = 60.0
AUDITED = Path(__file__).parent / "audited"


class LiveMarket:
    """`url`, `home`, `keys` (name → key), and an httpx client per key: `client("factory")`.

    `like`: the folder of a stopped market; this one begins with a copy of it.
    """

    def __init__(self, home: Path, *, demo: bool = True, like: Path | None = None, **environment: str) -> None:
        self.home, self.demo = home, demo
        if like is not None:
            shutil.copytree(like, home, symlinks=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_port = int(environment.get("ALGOMART_GRPC_PORT", "0"))
        self.keys: dict[str, str] = {}
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ALGOMART_")}
        own = {"ALGOMART_HOME": str(home), "ALGOMART_PORT": str(self.port), "ALGOMART_BUILD_MINILM": "false"}
        path = os.pathsep.join(filter(None, (str(AUDITED), self._environment.get("PYTHONPATH", ""))))
        audited = {"PYTHONPATH": path, "AUDITED_FILE": str(self.audit_path)}
        self._environment |= own | audited | environment
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[httpx.Client] = []

    @property
    def log_path(self) -> Path:
        return self.home.with_name(self.home.name + ".log")

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def audit_path(self) -> Path:
        return self.home.with_name(self.home.name + ".audit")

    def addresses(self) -> dict[int, list[object]]:
        """Of each of its Python processes so far what it connected or sent to, or looked up."""
        found: dict[int, list[object]] = {}
        for line in self.audit_path.read_text(encoding="utf-8").splitlines():
            pid, event, address = json.loads(line)
            found.setdefault(pid, [])
            if event != "began":
                found[pid].append(address)
        return found

    def foreign_addresses(self) -> list[object]:
        """Those of them that are not on this machine."""
        every = [each for addresses in self.addresses().values() for each in addresses]
        return [each for each in every if not _is_of_this_machine(each)]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it is ready; an early end fails with its log."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start it and go on at once."""
        command = [sys.executable, "-m", "marketplace.cli", "up", "--demo" if self.demo else "--no-demo"]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the market did not start:\n{self.log}")
            time.sleep(0.1)
        if self.demo:
            self.keys = json.loads((self.home / "demo-keys.json").read_text(encoding="utf-8"))

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/health/ready", trust_env=False, timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> int:
        """SIGTERM, and wait for its end; answers the exit status."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_S)

    def kill(self) -> None:
        """SIGKILL: nothing is drained, sealed or said."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_S)

    def client(self, name: str = "") -> httpx.Client:
        """A client with the key of that name ("": none). Closed with the market."""
        headers = {"Authorization": f"Bearer {self.keys[name]}"} if name else {}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
        self._clients.append(client)
        return client


def _is_of_this_machine(address: object) -> bool:
    """A path (a Unix socket's), no address at all, or one of loopback: `[host, port, …]` or a host."""
    host = address[0] if isinstance(address, list) else address
    return host in (None, "", "localhost", "::1") or (isinstance(host, str) and host.startswith(("127.", "/")))
