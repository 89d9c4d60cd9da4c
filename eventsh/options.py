"""Every option, once: the fields of `Options` are the options, and what else is known of each is in OPTIONS.

The parameters of `configure`, the command line, the environment and the help derive from here. Decides what a value
may be; reads neither the environment nor the command line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

from eventsh.errors import ConfigureError

__all__ = [
    "OPTIONS",
    "Kind",
    "Option",
    "OptionValue",
    "Options",
    "Scope",
    "broker_arguments",
    "format_option",
    "option_arguments",
    "parse_broker_arguments",
    "parse_bytes",
    "parse_option",
    "parse_seconds",
]

Kind: TypeAlias = Literal["seconds", "count", "bytes", "choice", "text", "flag"]
Scope: TypeAlias = Literal["client", "broker"]
OptionValue: TypeAlias = float | int | str | bool | None

CLIENT: frozenset[Scope] = frozenset({"client"})
BROKER: frozenset[Scope] = frozenset({"broker"})
BOTH: frozenset[Scope] = CLIENT | BROKER

# threading.TIMEOUT_MAX is 9.2e9 s, and a wait that is longer raises OverflowError far from where it was configured.
MAX_SECONDS = 1e9
# A slot is numbered with a u16.
MAX_SLOTS = 65536

NONE_TEXT = "none"
FLAG_TEXTS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
EXAMPLES: Mapping[Kind, str] = {
    "seconds": "5, 0.5, 500ms, 2s or 1m",
    "bytes": "65536, 64KiB or 2MiB",
    "count": "1024",
    "flag": "true or false",
}

SECONDS_PATTERN = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?) ?(ms|s|m|h)?", re.IGNORECASE)
# Twenty digits are more than any limit; int() refuses thousands of them with an error of its own.
COUNT_PATTERN = re.compile(r"[+-]?[0-9]{1,20}")
BYTES_PATTERN = re.compile(r"([+-]?[0-9]{1,20}) ?(B|KB|MB|GB|KiB|MiB|GiB)?", re.IGNORECASE)
BYTES_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SECONDS_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of one option. `minimum` and `maximum` are allowed values themselves, `above` is not."""

    name: str
    kind: Kind
    default: OptionValue
    help: str
    scope: frozenset[Scope]
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    """None is a value too."""

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return f"EVENTSH_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of the command line that sets it."""
        return "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """What a value must be, in words: "a number of seconds above 0"."""
        words = {
            "seconds": "a number of seconds",
            "count": "a whole number",
            "bytes": "a whole number of bytes",
            "choice": " or ".join(repr(choice) for choice in self.choices),
            "text": "a string that is not empty",
            "flag": "True or False",
        }[self.kind]
        return words + self._range() + (", or None" if self.optional else "")

    def _range(self) -> str:
        top = None if self.maximum is None else f"{self.maximum:.15g}"
        if self.above is not None:
            return f" above {self.above:g}" + (f" and at most {top}" if top else "")
        if self.minimum is None:
            return f" of at most {top}" if top else ""
        return f" from {self.minimum:g} to {top}" if top else f" of at least {self.minimum:g}"

    def check(self, value: object, *, label: str | None = None) -> OptionValue:
        """Give `value` as its own plain type, or raise ConfigureError. Strings are not parsed: see `parse_option`.

        `label` is what the user calls the option where that is not its name: a flag, a variable.
        """
        if value is None and self.optional:
            return None
        plain = self._plain(value)
        if plain is None or not self._within(plain):
            raise ConfigureError(f"{label or self.name} must be {self.expected}, not {_shown(value)}", option=self.name)
        return plain

    def _plain(self, value: object) -> OptionValue:
        match self.kind:
            case "flag":
                return value if isinstance(value, bool) else None
            case "choice" | "text":
                return str(value) if isinstance(value, str) and value else None
            case "count" | "bytes":
                return int(value) if isinstance(value, int) and not isinstance(value, bool) else None
            case "seconds":
                return _finite(value)

    def _within(self, value: OptionValue) -> bool:
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if value is None or isinstance(value, bool):
            return True
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
        )


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        return None
    return number if isfinite(number) else None


def _shown(value: object) -> str:
    # A wrong value can be anything: a whole document passed by mistake must not become the message.
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}… ({type(value).__name__})"


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
            "How long a worker may make no progress before its events are dropped and told to it as a gap.",
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


def parse_seconds(text: str) -> float:
    """The seconds in "5", "0.5", "500ms", "2s", "1m" or "1h". Raises ValueError, whose text says what to write."""
    found = SECONDS_PATTERN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{_shown(text)} is no length of time: write for example {EXAMPLES['seconds']}")
    number, unit = float(found[1]), (found[2] or "s").lower()
    # Divided, as 9 * 0.001 is not 0.009.
    return number / 1000 if unit == "ms" else number * SECONDS_UNITS[unit]


def parse_bytes(text: str) -> int:
    """The bytes in "65536", "64KiB", "1MB" or "2MiB". Raises ValueError, whose text says what to write."""
    found = BYTES_PATTERN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{_shown(text)} is no size: write for example {EXAMPLES['bytes']}")
    return int(found[1]) * BYTES_UNITS[(found[2] or "B").lower()]


def _parse_value(option: Option, text: str) -> OptionValue:
    match option.kind:
        case "seconds":
            return parse_seconds(text)
        case "bytes":
            return parse_bytes(text)
        case "count":
            if COUNT_PATTERN.fullmatch(text.strip()):
                return int(text)
            raise ValueError(f"{_shown(text)} is no whole number: write for example {EXAMPLES['count']}")
        case "flag":
            if (flag := FLAG_TEXTS.get(text.strip().lower())) is not None:
                return flag
            raise ValueError(f"{_shown(text)} is neither yes nor no: write {EXAMPLES['flag']}")
        case "choice" | "text":
            return text


def parse_option(name: str, text: str, *, label: str | None = None) -> OptionValue:
    """The value of option `name` as the command line or the environment has it; "none" where it may be None.

    Raises ConfigureError that names `label`, which is the option's flag unless told otherwise (a variable's name).
    """
    _check_names((name,))
    option = OPTIONS[name]
    label = label or option.flag
    if option.optional and text.strip().lower() == NONE_TEXT:
        return None
    try:
        value = _parse_value(option, text)
    except ValueError as error:
        hint = f", or {NONE_TEXT}" if option.optional else ""
        raise ConfigureError(f"{label}: {error}{hint}", option=name) from None
    return option.check(value, label=label)


def format_option(name: str, value: OptionValue) -> str:
    """The text that `parse_option` reads as `value`."""
    _check_names((name,))
    if value is None:
        return NONE_TEXT
    return str(value).lower() if isinstance(value, bool) else str(value)


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
            raise ConfigureError(f"{_shown(argument)} is no option of the broker; they are {'=, '.join(names)}=")
        values[names[flag]] = parse_option(names[flag], text)
    return Options.from_values(**values)
