"""What `set` changes: how this shell shows things. Each is checked as options are."""

from __future__ import annotations

from dataclasses import dataclass, fields

from eventsh.errors import UsageError

__all__ = ["SETTINGS", "Settings"]

SETTINGS = {
    "pager": "show what is longer than the screen in a pager",
    "pretty": "break data that is longer than a line into many",
    "rate": "how many events a second `tail` shows; of more, a sample",
}
_FLAGS = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
_MAX_RATE = 1000


@dataclass(slots=True)
class Settings:
    """The values of one shell."""

    pager: bool = True
    pretty: bool = True
    # About what an eye can follow; a terminal that is asked for 10,000 lines a second would be all that the shell does.
    rate: int = 20

    def change(self, name: str, text: str) -> None:
        """Set what `set NAME VALUE` asks for. Raises UsageError."""
        if name not in SETTINGS:
            raise UsageError(f"there is no setting {name!r}; the settings are {', '.join(SETTINGS)}")
        if name == "rate":
            if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= _MAX_RATE):
                raise UsageError(f"rate must be a whole number from 1 to {_MAX_RATE}, not {text[:40]!r}")
            self.rate = int(text)
        elif text.lower() in _FLAGS:
            setattr(self, name, _FLAGS[text.lower()])
        else:
            raise UsageError(f"{name} must be on or off, not {text[:40]!r}")

    def rows(self) -> list[tuple[str, str, str]]:
        """Each as its name, its value and what it is for."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [(name, _shown(values[name]), about) for name, about in SETTINGS.items()]


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
