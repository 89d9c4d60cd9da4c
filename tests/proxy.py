"""A TCP proxy for tests, in threads of its own: it cuts connections, or swallows what passes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

__all__ = ["Proxy"]


class Proxy:
    """Carries bytes between clients and a broker at a port of 127.0.0.1, until told otherwise."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.connections = 0
        self._target = port
        self._swallows = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What waits in accept is woken by shutdown, not by close.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def swallow(self) -> None:
        """From now on nothing arrives, and nobody is told: every byte, both ways, on every connection, and new ones too."""
        self._swallows.set()

    def carry_on(self) -> None:
        """End that. What was swallowed is gone, so the connections of that time are cut."""
        self.cut()
        self._swallows.clear()

    def cut(self) -> None:
        """Reset every connection, whatever is on the way."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)

    def _start(self, target, *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self.connections += 1
            with self._lock:
                self._sockets |= {client, server}
            both = threading.Barrier(2)
            self._start(self._carry, client, server, both)
            self._start(self._carry, server, client, both)

    def _carry(self, source: socket.socket, target: socket.socket, both: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._swallows.is_set():
                    target.sendall(data)
        if not self._swallows.is_set():
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)
        both.wait()
        source.close()
        with self._lock:
            self._sockets.discard(source)
