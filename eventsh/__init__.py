"""Events between the worker processes of one host, with no server to install.

    import eventsh

    @eventsh.on("cache", "purge")
    def purge(data, event, source, pid):
        print("purge", data["key"])

    eventsh.configure()
    eventsh.post("cache", "purge", {"key": "k1"})

The functions act on this process's one default bus; `Events` and `AsyncEvents` are the same as objects.

A map of the package, from the bottom up; each block imports only from those above it:

    errors event notation option options address receipt
                                    words, and what may be said
    protocol/                       bytes <-> messages
    core/                           every rule of delivery, without I/O and clock
    transport hookspecs plugins transports/
                                    what moves frames, and how plugins add to it
    recording/                      files of events
    runtime/                        loops, threads and processes: broker, client, dispatch, election, pool
    api                             what programs call
    commands/                       what people ask for, as functions that return data
    cli/ shell/                     what people type and see
    testing/                        the kit that tests transports; nothing above imports it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventsh.api import AsyncEvents as AsyncEvents
    from eventsh.api import Events as Events
    from eventsh.api import default_events
    from eventsh.api import event_list as event_list
    from eventsh.errors import AuthenticationError as AuthenticationError
    from eventsh.errors import ConfigureError as ConfigureError
    from eventsh.errors import EventError as EventError
    from eventsh.errors import NotConnected as NotConnected
    from eventsh.errors import NotSerializable as NotSerializable
    from eventsh.errors import PayloadTooLarge as PayloadTooLarge
    from eventsh.errors import PluginError as PluginError
    from eventsh.errors import ProtocolError as ProtocolError
    from eventsh.errors import QueueOverflow as QueueOverflow
    from eventsh.errors import RecordingError as RecordingError
    from eventsh.errors import TransportError as TransportError
    from eventsh.errors import UsageError as UsageError
    from eventsh.runtime.interpreter import freeze_support as freeze_support
    from eventsh.runtime.replayed import replayed as replayed

    _bus = default_events()
    configure = _bus.configure
    configured = _bus.configured
    post = _bus.post
    post_and_wait = _bus.post_and_wait
    post_local = _bus.post_local
    register = _bus.register
    register_weak = _bus.register_weak
    unregister = _bus.unregister
    on = _bus.on
    wait_ready = _bus.wait_ready
    flush = _bus.flush
    drain = _bus.drain
    close = _bus.close

__version__ = "0.2.0"

_OBJECTS = ("AsyncEvents", "Events", "event_list", "replayed")
_ERRORS = (
    "AuthenticationError",
    "ConfigureError",
    "EventError",
    "NotConnected",
    "NotSerializable",
    "PayloadTooLarge",
    "PluginError",
    "ProtocolError",
    "QueueOverflow",
    "RecordingError",
    "TransportError",
    "UsageError",
)
_FUNCTIONS = (
    "close",
    "configure",
    "configured",
    "drain",
    "flush",
    "freeze_support",
    "on",
    "post",
    "post_and_wait",
    "post_local",
    "register",
    "register_weak",
    "unregister",
    "wait_ready",
)
__all__ = [*_OBJECTS, *_ERRORS, *_FUNCTIONS, "__version__"]


# Looked up when first asked for: the broker's and the command line's processes import this package too, and must not
# pay for asyncio and all the rest.
def __getattr__(name: str) -> Any:
    if name in _ERRORS:
        from eventsh import errors

        value = getattr(errors, name)
    elif name == "freeze_support":
        # Without the API: in a frozen program's broker, it does not return.
        from eventsh.runtime.interpreter import freeze_support

        value = freeze_support
    elif name in _OBJECTS or name in _FUNCTIONS:
        from eventsh import api

        value = getattr(api, name) if name in _OBJECTS else getattr(api.default_events(), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
