"""A Hub for tests on 127.0.0.1: what huggingface_hub, transformers, timm and datasets ask of the real one's HTTP API.

python tests/hub_server_for_tests.py --root DIR --port 8123

Tests write to and read from ``Hub.store`` directly, and let requests go wrong with ``Hub.fail``. Clients need
``HF_HUB_DISABLE_XET=1``: large files travel by git LFS, as in ``Hub.environment``.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_endpoints_for_tests import WRITE_TOKEN, Handler
from hub_store_for_tests import Store


@dataclass
class Fault:
    """What befalls the next requests of a kind.

    Args:
        method: Regular expression of the whole method.
        path: Regular expression found in the path.
        status: What is answered.
        count: To how many requests.
        headers: Sent with it, as ``Retry-After``.
        drop_after: Hang up in place of an answer, after that many bytes of the body.
        kill: End the whole process by SIGKILL: in place of hanging up, or, without ``drop_after``, of an answer to what
            was done.
    """

    method: str
    path: str
    status: int = 500
    count: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    kill: bool = False


class Hub:
    """A Hub that runs in threads of this process, from its construction until ``stop``.

    Args:
        root: Where it keeps its repositories; another Hub over the same folder goes on from there.
        port: Where it listens; 0 takes a free one, which stays the same when it is started again.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        self.root, self.port = root, port
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.connections: set[socket.socket] = set()
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.store = Store(self.root)
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), type("HubHandler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on, and cut those there are."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client was faster
                continue

    def fail(self, method: str, path: str, **fault: Any) -> None:
        """Let the next requests go wrong; see :class:`Fault`."""
        self.faults.append(Fault(method, path, **fault))

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.count > 0 and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                fault.count -= 1
                return fault
        return None

    def environment(self, home: Path, token: str = WRITE_TOKEN) -> dict[str, str]:
        """Return the environment of a process whose only Hub is this one.

        Args:
            home: Its cache.
            token: None at all where this is empty.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        ours = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": token,
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, ours)),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kill_in", nargs=2, metavar=("METHOD", "PATH"), help="Be killed in a request of this kind.")
    parser.add_argument("--kill_after", type=int, metavar="BYTES", help="Of its body; without it, when it is done.")
    arguments = parser.parse_args()
    hub = Hub(arguments.root, arguments.port)
    if arguments.kill_in:
        hub.fail(*arguments.kill_in, drop_after=arguments.kill_after, kill=True)
    print(hub.endpoint, flush=True)
    threading.Event().wait()
