"""How a command of typer's parses its line and shows its help here.

typer turns each value into its type with pydantic, whose import takes longer than all the rest of a post. No option
here needs it: all are texts, which eventsh.options and the commands parse themselves, or flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

__all__ = ["Command", "Group", "UsageException", "build_plugged"]

# The base of what a wrong line raises. Older versions of typer have it from click, newer ones bring their own.
UsageException: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


class _Examples:
    """The epilog is examples, one a line, that are never wrapped: a broken line can't be copied."""

    epilog: str | None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(_Examples, TyperGroup):
    """`eventsh` itself, with all of its commands; those of plugins come behind, and are loaded when they are asked for."""

    _plugged: dict[str, Any] | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *sorted(self._find_plugged().keys() - own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # A plugin can't take the place of what people know.
        return super().get_command(ctx, cmd_name) or self._find_plugged().get(cmd_name)

    def _find_plugged(self) -> dict[str, Any]:
        if self._plugged is None:
            from eventsh.plugins import plugins

            manager = plugins()
            manager.load()
            found = [functions for functions in manager.call("eventsh_cli_commands") if isinstance(functions, Mapping)]
            self._plugged = {
                name: build_plugged(name, function)
                for functions in found
                for name, function in functions.items()
                if callable(function)
            }
        return self._plugged


def build_plugged(name: str, function: Callable[..., Any]) -> Any:
    """With typer's own parsing: a plugin's parameters may be of any type."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.command(name)(function)
    return get_command(app)


class Command(_Examples, TyperCommand):
    """One command, all of whose parameters are texts, lists of texts, or flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, rest, _ = self.make_parser(ctx).parse_args(list(args))
        values: dict[str, Any] = {}
        for param in self.get_params(ctx):
            value = given.get(param.name)
            if value is None:
                value = param.value_from_envvar(ctx)
            if param.is_eager and value is not None:
                return super().parse_args(ctx, args)
            if value is None:
                value = param.get_default(ctx)
            is_plain = isinstance(value, str | bool | list | tuple) or (value is None and not param.required)
            if rest or not is_plain:
                # typer has the words for what is missing or too much.
                return super().parse_args(ctx, args)
            if param.expose_value:
                values[param.name] = value
        ctx.params.update(values)
        return []

    # The names of arguments as they are declared: "[DATA]..." and not "[[DATA]...]...", and no types.

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param.metavar or "" for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *arguments]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[Any]] = {"argument": [], "option": []}
        for param in self.get_params(ctx):
            kind = param.param_type_name
            row = (param.metavar, getattr(param, "help", "")) if kind == "argument" else param.get_help_record(ctx)
            if row is not None:
                rows[kind].append(row)
        for kind, table in rows.items():
            if table:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(table)
