"""Loops in threads of this process: one for a bus of a program without a loop, and one for an in-process broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from eventsh.errors import TransportError
from eventsh.runtime.broker import Broker
from eventsh.runtime.loop import new_event_loop

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.options import Options
    from eventsh.transport import Transport

__all__ = ["LoopThread", "start_hosted_broker"]

T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a daemon thread of its own until `stop`."""

    def __init__(self, name: str) -> None:
        self.loop = new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this very thread, and so can't wait for it."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, T], limit_s: float | None = None) -> T:
        """Run a coroutine in the loop and wait for its end. Ctrl-C in the waiting thread cancels it, and so does the end
        of `limit_s`, with a TimeoutError."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(limit_s)
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.is_current:
            self._thread.join()


def start_hosted_broker(transport: Transport, address: Address, options: Options) -> bool:
    """Start a broker in a thread of this process, for a transport that does not leave it. Blocks until it listens.

    False: there is one at `address` already.
    """
    thread = LoopThread(f"eventsh broker {address}")

    async def start() -> Broker | None:
        broker = Broker(transport, address, options)
        try:
            await broker.start()
        except TransportError:
            return None
        return broker

    try:
        broker = thread.run(start())
    except BaseException:
        thread.stop()
        raise
    if broker is None:
        thread.stop()
        return False

    async def serve(broker: Broker) -> None:
        await broker.load_plugins()
        await broker.stopping.wait()
        await broker.close()
        thread.stop()

    asyncio.run_coroutine_threadsafe(serve(broker), thread.loop)
    return True
