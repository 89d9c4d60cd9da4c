"""The options of every verb that goes to a broker which say how the connection is secured."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from eventsh.options import OPTIONS, parse_option

__all__ = ["secured"]

# What a client needs of them; all name a file or a host, and none is a secret itself.
FLAGS = {"token_file": "FILE", "tls_ca": "FILE", "tls_name": "HOST"}


def secured(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The verb with these options, if it has an `address`. A flag is the variable of that name, for this command and all
    that it starts: whatever finds a broker looks there."""
    signature = inspect.signature(function, eval_str=True)
    if "address" not in signature.parameters:
        return function
    hints = {name: Annotated[str | None, _flag(name, metavar)] for name, metavar in FLAGS.items()}

    @wraps(function)
    def verb(**values: Any) -> int | None:
        for name in FLAGS:
            text = values.pop(name)
            if text is not None:
                parse_option(name, text)
                os.environ[OPTIONS[name].env] = text
        return function(**values)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in hints.items()
    ]
    verb.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    verb.__annotations__ = {**function.__annotations__, **hints}
    return verb


def _flag(name: str, metavar: str) -> Any:
    option = OPTIONS[name]
    return typer.Option(option.flag, metavar=metavar, help=f"{option.help}  [${option.env}]")
