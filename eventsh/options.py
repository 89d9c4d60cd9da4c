"""Every option, once: the fields of `Options` are the options, and what else is known of each is in OPTIONS.

The parameters of `configure`, the command line, the environment and the help derive from here. What an option may be is
`option.py`'s to know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, cast

from eventsh.errors import ConfigureError
from eventsh.notation import show_value
from eventsh.option import Kind, Option, OptionValue, Scope

__all__ = [
    "OPTIONS",
    "Options",
    "broker_arguments",
    "format_option",
    "option_arguments",
    "parse_broker_arguments",
    "parse_option",
]

CLIENT: frozenset[Scope] = frozenset({"client"})
BROKER: frozenset[Scope] = frozenset({"broker"})
BOTH: frozenset[Scope] = CLIENT | BROKER

# threading.TIMEOUT_MAX is 9.2e9 s, and a wait that is longer raises OverflowError far from where it was configured.
MAX_SECONDS = 1e9
# A slot is numbered with a u16.
MAX_SLOTS = 65536


def _about(kind: Kind, scope: frozenset[Scope], help: str, **limits: Any) -> dict[str, Any]:  # noqa: A002 - as Option.help
    return {"kind": kind, "scope": scope, "help": help, **limits}


def _seconds(scope: frozenset[Scope], help: str, **limits: Any) -> dict[str, Any]:  # noqa: A002 - as Option.help
    return _about("seconds", scope, help, maximum=MAX_SECONDS, **limits)


@dataclass(frozen=True, slots=True)
class Options:
    """A value for every option, checked. Raises ConfigureError, which names the option, for a value it can't have."""

    timeout: float = field(
        default=5.0,
        metadata=_seconds(
            BOTH,
            "How long a worker may make no progress or, with a full queue, hold posters up, before events are dropped for it"
            " and reported to it as a gap.",
            above=0,
        ),
    )
    unique_timeout: float | None = field(
        default=None,
        metadata=_seconds(
            BROKER, "How long repeats of a unique key are ignored; none: as long as timeout.", above=0, optional=True
        ),
    )
    max_queue_len: int = field(
        default=10240,
        metadata=_about("count", BOTH, "How many events a queue holds.", minimum=1, maximum=10_000_000),
    )
    max_payload_len: int = field(
        default=65536,
        metadata=_about("bytes", BOTH, "How large an encoded event may be.", minimum=1, maximum=16 * 1024 * 1024),
    )
    max_queue_bytes: int = field(
        default=64 * 1024 * 1024,
        metadata=_about(
            "bytes",
            BOTH,
            "How many encoded bytes a queue holds; at least max_payload_len.",
            minimum=1,
            maximum=64 * 1024 * 1024 * 1024,
        ),
    )
    broker: Literal["auto", "never"] = field(
        default="auto",
        metadata=_about(
            "choice",
            CLIENT,
            "auto: start a broker where none is running; never: only attach to one.",
            choices=("auto", "never"),
        ),
    )
    worker_id: int | None = field(
        default=None,
        metadata=_about(
            "count",
            CLIENT,
            "The slot to take; none: the broker chooses a free one.",
            minimum=0,
            maximum=MAX_SLOTS - 1,
            optional=True,
        ),
    )
    role: Literal["worker", "observer"] = field(
        default="worker",
        metadata=_about(
            "choice",
            CLIENT,
            "worker: has a slot and takes part; observer: sees every broadcast and nothing waits for it.",
            choices=("worker", "observer"),
        ),
    )
    take_unique: bool | None = field(
        default=None,
        metadata=_about(
            "flag", CLIENT, "Whether to take unique events; none: workers do, observers do not.", optional=True
        ),
    )
    allow_scripts: bool = field(
        default=True,
        metadata=_about(
            "flag",
            BOTH,
            "Whether handlers that are written in a shell may run in workers; only this user and root can bring them.",
        ),
    )
    linger: float | None = field(
        default=5.0,
        metadata=_seconds(
            BROKER, "How long a broker that nobody is attached to goes on; none: for ever.", minimum=0, optional=True
        ),
    )
    slots: int = field(
        default=0,
        metadata=_about(
            "count",
            BROKER,
            "How many worker slots exist from the broker's start, and queue events before their workers attach.",
            minimum=0,
            maximum=MAX_SLOTS,
        ),
    )
    max_slots: int = field(
        default=1024,
        metadata=_about("count", BROKER, "How many worker slots there can be.", minimum=1, maximum=MAX_SLOTS),
    )
    max_connections: int = field(
        default=1024,
        metadata=_about("count", BROKER, "How many connections a broker accepts.", minimum=1, maximum=10_000_000),
    )
    max_unique_keys: int = field(
        default=1_000_000,
        metadata=_about("count", BROKER, "How many unique keys are remembered at once.", minimum=1),
    )
    max_deliveries: int = field(
        default=3,
        metadata=_about(
            "count",
            BROKER,
            "How many processes may die in an event until it is a dead letter, which is delivered to nobody again.",
            minimum=1,
        ),
    )
    max_dead_letters: int = field(
        default=100,
        metadata=_about(
            "count", BROKER, "How many dead letters are kept to be looked at, retried or dropped.", minimum=1
        ),
    )
    hello_timeout: float = field(
        default=2.0,
        metadata=_seconds(BROKER, "How long a new connection may take to say hello.", above=0),
    )
    heartbeat: float = field(
        default=10.0,
        metadata=_seconds(
            BOTH,
            "How long the other side of a tcp: connection may be silent until it is asked for a sign of life; without an"
            " answer the connection is ended within three times that.",
            above=0,
        ),
    )
    ring_size: int = field(
        default=64 * 1024 * 1024,
        metadata=_about(
            "bytes",
            BOTH,
            "How much shared memory one ring of an shm: address has; it is taken only as it is used.",
            minimum=256 * 1024,
            maximum=1024 * 1024 * 1024,
        ),
    )
    record: str | None = field(
        default=None,
        metadata=_about("text", BROKER, "The file into which the broker records all that crosses it.", optional=True),
    )
    record_fsync: Literal["never", "interval", "always"] = field(
        default="interval",
        metadata=_about(
            "choice",
            BROKER,
            "When a recording is made safe from a loss of power: each second, or before a post is confirmed.",
            choices=("never", "interval", "always"),
        ),
    )
    record_max_size: int | None = field(
        default=None,
        metadata=_about(
            "bytes",
            BROKER,
            "How long a recording's file may become; then another follows.",
            minimum=4096,
            optional=True,
        ),
    )
    record_max_age: float | None = field(
        default=None,
        metadata=_seconds(
            BROKER, "How long events go into one file of a recording; then another follows.", above=0, optional=True
        ),
    )
    record_compress: bool = field(
        default=False,
        metadata=_about("flag", BROKER, "Whether finished files of a recording are compressed with zstd."),
    )
    flight_recorder: int | None = field(
        default=None,
        metadata=_about(
            "bytes",
            BROKER,
            "How much memory the last events may take, which are written out on SIGUSR2, on request, or when a handler fails.",
            minimum=4096,
            optional=True,
        ),
    )
    flight_dir: str | None = field(
        default=None,
        metadata=_about(
            "text", BROKER, "Where the flight recorder is written; none: in the broker's directory.", optional=True
        ),
    )
    token_file: str | None = field(
        default=None,
        metadata=_about(
            "text",
            BOTH,
            "A file with the secret that both sides of a connection must prove to have; none: no proof is asked for.",
            optional=True,
        ),
    )
    tls_cert: str | None = field(
        default=None,
        metadata=_about("text", BOTH, "A PEM file with the broker's certificate: it speaks TLS then.", optional=True),
    )
    tls_key: str | None = field(
        default=None,
        metadata=_about(
            "text", BROKER, "A PEM file with the key of that certificate; none: it is in the same file.", optional=True
        ),
    )
    tls_ca: str | None = field(
        default=None,
        metadata=_about(
            "text",
            CLIENT,
            "A PEM file with whom to trust for the broker's certificate; none: tls_cert, or else the system's.",
            optional=True,
        ),
    )
    tls_name: str | None = field(
        default=None,
        metadata=_about(
            "text", CLIENT, "The name in the broker's certificate; none: the host of the address.", optional=True
        ),
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.check(getattr(self, name)))
        if self.slots > self.max_slots:
            raise ConfigureError(
                f"slots is {self.slots}, over max_slots ({self.max_slots}): ask for fewer, or raise max_slots",
                option="slots",
            )
        if self.max_queue_bytes < self.max_payload_len:
            raise ConfigureError(
                f"max_queue_bytes is {self.max_queue_bytes}, below max_payload_len ({self.max_payload_len}): raise it",
                option="max_queue_bytes",
            )
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigureError("tls_key is the key of a certificate: give tls_cert too", option="tls_key")

    @classmethod
    def from_values(cls, **values: Any) -> Options:
        """Options with these values, the others at their defaults. A name that is no option is a ConfigureError."""
        _check_names(values)
        return cls(**values)

    def replace(self, **changes: Any) -> Options:
        """The same options but for `changes`, checked as in `from_values`."""
        _check_names(changes)
        return dataclasses.replace(self, **changes)


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        f.name: Option(name=f.name, default=cast("OptionValue", f.default), **f.metadata)
        for f in dataclasses.fields(Options)
    }
)


def _check_names(names: Iterable[str]) -> None:
    """Raise ConfigureError for the first of `names` that is no option."""
    for name in names:
        if name not in OPTIONS:
            raise ConfigureError(f"there is no option {name!r}; the options are {', '.join(OPTIONS)}", option=name)


def parse_option(name: str, text: str, *, label: str | None = None) -> OptionValue:
    """The value of option `name` as the command line or the environment has it; "none" where it may be None.

    Raises ConfigureError that names `label`, which is the option's flag unless told otherwise (a variable's name).
    """
    _check_names((name,))
    return OPTIONS[name].parse(text, label=label)


def format_option(name: str, value: OptionValue) -> str:
    """The text that `parse_option` reads as `value`."""
    _check_names((name,))
    return OPTIONS[name].format(value)


def option_arguments(options: Options, names: Iterable[str]) -> list[str]:
    """The command line that tells another program these options: those of `names` that differ from the default."""
    return [
        f"{OPTIONS[name].flag}={format_option(name, getattr(options, name))}"
        for name in names
        if getattr(options, name) != OPTIONS[name].default
    ]


def broker_arguments(options: Options) -> list[str]:
    """The command line that tells a broker program these options: those of its scope that differ from the default."""
    return option_arguments(options, (name for name, option in OPTIONS.items() if "broker" in option.scope))


def parse_broker_arguments(arguments: Iterable[str]) -> Options:
    """The options that `broker_arguments` wrote. Raises ConfigureError for anything that it does not write."""
    names = {option.flag: name for name, option in OPTIONS.items() if "broker" in option.scope}
    values: dict[str, OptionValue] = {}
    for argument in arguments:
        flag, equals, text = argument.partition("=")
        if flag not in names or not equals:
            raise ConfigureError(f"{show_value(argument)} is no option of the broker; they are {'=, '.join(names)}=")
        values[names[flag]] = parse_option(names[flag], text)
    return Options.from_values(**values)
