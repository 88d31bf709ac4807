"""The commands and their options, as their functions declare them.

Read from the annotations that typer reads, and not from what typer or click make
of them, which changes with their versions and with the width of a terminal.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import typer
from typer.models import ArgumentInfo, OptionInfo

import loadgen.cli
import nbclient.cli
import nbnet.cli

APPS: Final[dict[str, typer.Typer]] = {
    "nbnet": nbnet.cli.app,
    "nbclient": nbclient.cli.app,
    "loadgen": loadgen.cli.app,
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """An option or an argument of a command.

    Attributes:
        names: of an option; none of an argument.
        value: what stands for its value; empty where it takes none.
        default: for people; empty for none.
        help: what it is for.
        panel: the heading below which it stands.
        repeated: whether it may be given several times.
    """

    names: tuple[str, ...]
    value: str
    default: str
    help: str
    panel: str
    repeated: bool


def commands(program: str) -> dict[str, Callable[..., Any]]:
    """The functions behind a program and its commands, by what one types."""
    app = APPS[program]
    found = {}
    if app.registered_callback is not None and app.registered_callback.callback is not None:
        found[program] = app.registered_callback.callback
    for each in app.registered_commands:
        assert each.callback is not None
        found[f"{program} {each.name or each.callback.__name__}"] = each.callback
    return found


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """What a command takes, in the order of its declaration."""
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if typing.get_origin(parameter.annotation) is not typing.Annotated:
            continue  # the context
        kind, told = typing.get_args(parameter.annotation)[:2]
        assert isinstance(told, OptionInfo | ArgumentInfo)
        yield _parameter(name, kind, told, parameter.default)


def known_options(words: list[str]) -> set[str]:
    """The options that a command line's command takes, those of a load included."""
    program, *rest = words
    ours = commands(program)
    chosen = next((ours[f"{program} {word}"] for word in rest if f"{program} {word}" in ours), None)
    functions = [ours[program]] if chosen is None else [chosen]
    if program == "loadgen" and chosen is not None:
        functions.append(ours[program])  # commands pass on what they do not know
    return {"--help", "-h"} | {
        name for function in functions for each in parameters(function) for name in each.names
    }


def command_pages(program: str) -> str:
    """The reference of a program and its commands, as Markdown."""
    return "\n\n".join(_page(name, function) for name, function in commands(program).items())


def _page(name: str, function: Callable[..., Any]) -> str:
    parts = [f"### {name}", _prose(inspect.getdoc(function) or "")]
    panels: dict[str, list[Parameter]] = {}
    for each in parameters(function):
        panels.setdefault(each.panel, []).append(each)
    for panel, members in panels.items():
        lines = [f"**{panel}**", ""] if panel else []
        lines += ["| option | default | |", "|---|---|---|"]
        lines += [_row(each) for each in members]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(parameter: Parameter) -> str:
    names = [f"`{name}`" for name in parameter.names]
    value = _cell(parameter.value)
    shown = ", ".join(names) + (f" `{value}`" if value else "")
    if not names:
        shown = f"`{value}`"
    if parameter.repeated:
        shown += " ..."
    default = f"`{_cell(parameter.default)}`" if parameter.default else ""
    return f"| {shown} | {default} | {_cell(parameter.help)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _prose(text: str) -> str:
    """A docstring's paragraphs as Markdown."""
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _parameter(name: str, kind: Any, told: OptionInfo | ArgumentInfo, default: object) -> Parameter:
    inner = [each for each in typing.get_args(kind) if each is not types.NoneType]
    if isinstance(kind, types.UnionType) and len(inner) == 1:
        kind = inner[0]
    repeated = typing.get_origin(kind) is list
    names: tuple[str, ...] = ()
    if isinstance(told, OptionInfo):
        # A first name stands where other declarations have the default.
        first = (told.default,) if isinstance(told.default, str) else ()
        names = (*first, *told.param_decls) if told.param_decls else first
        names = tuple(dict.fromkeys(names)) or (f"--{name.strip('_').replace('_', '-')}",)
    names = tuple(part for each in names for part in each.split("/"))
    value = told.metavar or ""
    if not value and kind is not bool:
        value = "N" if kind is int else name.upper()
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            value = "|".join(str(each.value) for each in kind)
    return Parameter(
        names,
        value,
        _default(told, default),
        (told.help or "") + (f" Also: ${told.envvar}." if isinstance(told.envvar, str) else ""),
        told.rich_help_panel or "",
        repeated,
    )


def _default(told: OptionInfo | ArgumentInfo, default: object) -> str:
    if isinstance(told.show_default, str):
        return told.show_default
    if default is inspect.Parameter.empty:
        return "required"
    if not told.show_default or default is None or default is False:
        return ""
    if default is True:
        return "yes"
    if isinstance(default, list):
        return " ".join(map(str, default))
    return str(default.value if isinstance(default, enum.Enum) else default)
