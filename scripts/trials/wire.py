"""A wire between a client and a real server that fails as networks do: cut, silent, dripping, refusing, changing.

    python wire.py RULES_FOLDER PORT_FILE SERVER_PORT

One connection is one request: the wire asks the server to close after each answer, so that a fault is about one object.
A request whose path holds ``/aN/`` follows ``RULES_FOLDER/aN.json``, read anew each time: ``{"match": part of the path,
"kind": ..., "after": bytes of the answer that pass before, "times": how many requests have the fault, then none}``.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

DRIP_BYTES, DRIP_SECONDS = 16, 0.5
SILENT_SECONDS = 100.0


class Wire:
    """Passes requests on, and answers back, with the faults that the rules name.

    Parameters
    ----------
    rules : Path
        The folder of the rules, one file an attempt.
    server_port : int
        Where the real server listens on this machine.
    """

    def __init__(self, rules: Path, server_port: int) -> None:
        self.rules, self.server_port = rules, server_port
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}

    def serve(self, listener: socket.socket) -> None:
        """Take connections for ever, each in a thread of its own."""
        while True:
            client, _ = listener.accept()
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            try:
                head, body = _read_request(client)
                if not head:
                    return
                rule = self._rule_for(head.split(b" ", 2)[1].decode(errors="replace"))
                kind = rule["kind"] if rule else ""
                if kind == "replace":
                    self._replace(rule)
                if kind == "refuse":
                    _reset(client)
                elif kind.startswith("status"):
                    text = f"HTTP/1.1 {kind[7:]} Because\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    client.sendall(text.encode())
                else:
                    with socket.create_connection(("127.0.0.1", self.server_port)) as server:
                        server.sendall(_closing(head) + body)
                        _pass_on(server, client, kind, int(rule.get("after", 0)) if rule else 0)
            except OSError:
                pass  # the client went away, as clients do after a fault

    def _replace(self, rule: dict[str, Any]) -> None:
        """Put another object in the place of one that is served: a file of nginx, or an object of the S3 server."""
        data = Path(rule["source"]).read_bytes()
        if "file" in rule:
            partial = Path(rule["file"]).with_suffix(".partial")
            partial.write_bytes(data)
            partial.replace(rule["file"])
        else:
            import boto3  # requests are signed: only who has the keys may replace an object

            bucket, _, key = rule["object"].partition("/")
            client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.server_port}")
            client.put_object(Bucket=bucket, Key=key, Body=data)

    def _rule_for(self, path: str) -> dict[str, Any]:
        found = re.search(r"/(a\d+)/", path)
        rules = self.rules / f"{found[1]}.json" if found else None
        if rules is None or not rules.exists():
            return {}
        rule: dict[str, Any] = json.loads(rules.read_text())
        if rule["match"] not in path:
            return {}
        with self._lock:
            self._used[rules.name] = self._used.get(rules.name, 0) + 1
            return rule if self._used[rules.name] <= rule.get("times", sys.maxsize) else {}


def _read_request(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        block = client.recv(1 << 16)
        if not block:
            return b"", b""
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]):
        body += client.recv(1 << 16)
    return head, body


def _closing(head: bytes) -> bytes:
    """Return the head of a request that asks the server to close the connection after its answer."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _pass_on(server: socket.socket, client: socket.socket, kind: str, after: int) -> None:
    passed = 0
    while block := server.recv(1 << 16):
        if kind in ("", "replace"):
            client.sendall(block)
            continue
        client.sendall(block[: max(after - passed, 0)])
        rest = block[max(after - passed, 0) :]
        passed += len(block)
        if not rest:
            continue
        if kind == "cut":
            return
        if kind == "reset":
            _reset(client)
            return
        if kind == "silent":
            time.sleep(SILENT_SECONDS)
            return
        for start in range(0, len(rest), DRIP_BYTES):
            client.sendall(rest[start : start + DRIP_BYTES])
            time.sleep(DRIP_SECONDS)


def _reset(client: socket.socket) -> None:
    """Close with RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def main() -> None:
    """Listen on a free port, write its number, and serve."""
    rules, port_file, server_port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    partial = port_file.with_suffix(".partial")
    partial.write_text(str(listener.getsockname()[1]))
    partial.replace(port_file)
    Wire(rules, server_port).serve(listener)


if __name__ == "__main__":
    main()
