"""What one option is: its kind, which values it may have, and how they are written on a command line.

Knows of no option in particular, and reads neither the environment nor the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias

from eventsh.errors import ConfigureError
from eventsh.notation import parse_bytes, parse_count, parse_flag, parse_seconds, show_value

__all__ = ["Kind", "Option", "OptionValue", "Scope"]

Kind: TypeAlias = Literal["seconds", "count", "bytes", "choice", "text", "flag"]
Scope: TypeAlias = Literal["client", "broker"]
OptionValue: TypeAlias = float | int | str | bool | None

NONE_TEXT = "none"


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
        """Give `value` as its own plain type, or raise ConfigureError. Strings are not parsed: see `parse`.

        `label` is what the user calls the option where that is not its name: a flag, a variable.
        """
        if value is None and self.optional:
            return None
        plain = self._plain(value)
        if plain is None or not self._within(plain):
            raise ConfigureError(
                f"{label or self.name} must be {self.expected}, not {show_value(value)}", option=self.name
            )
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

    def parse(self, text: str, *, label: str | None = None) -> OptionValue:
        """The value as the command line or the environment has it; "none" where it may be None. Raises ConfigureError,
        with the option's flag as its `label` unless told otherwise."""
        label = label or self.flag
        if self.optional and text.strip().lower() == NONE_TEXT:
            return None
        try:
            value = self._read(text)
        except ValueError as error:
            hint = f", or {NONE_TEXT}" if self.optional else ""
            raise ConfigureError(f"{label}: {error}{hint}", option=self.name) from None
        return self.check(value, label=label)

    def _read(self, text: str) -> OptionValue:
        match self.kind:
            case "seconds":
                return parse_seconds(text)
            case "bytes":
                return parse_bytes(text)
            case "count":
                return parse_count(text)
            case "flag":
                return parse_flag(text)
            case "choice" | "text":
                return text

    def format(self, value: OptionValue) -> str:
        """The text that `parse` reads as `value`."""
        if value is None:
            return NONE_TEXT
        return str(value).lower() if isinstance(value, bool) else str(value)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        return None
    return number if isfinite(number) else None
