"""The reference of what programs import, from signatures and docstrings."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from typing import Any, Final

_SECTION: Final = re.compile(r"^(Args|Attributes|Raises|Yields|Returns)(?: \(([^)]*)\))?:$")
_ITEM: Final = re.compile(r"^    (\S[^:]*): (.*)$")


def module_page(name: str) -> str:
    """The public names of a module, as Markdown."""
    module = importlib.import_module(name)
    parts = []
    for each in getattr(module, "__all__", ()):
        value = getattr(module, each)
        if inspect.isclass(value):
            parts.append(_class(each, value))
        elif callable(value):
            parts.append(f"### {each}\n\n{_signature(each, value)}\n\n{_text(value)}")
        else:
            parts.append(f"### {each}\n\n`{each} = {value!r}`")
    return "\n\n".join(parts)


def fixture_page() -> str:
    """The pytest fixture, as Markdown."""
    from nbnet import pytest_plugin

    return f"### nbnet_server\n\n{markdown(pytest_plugin.nbnet_server.__doc__ or '')}"


def _class(name: str, kind: type[Any]) -> str:
    parts = [f"### {name}"]
    if issubclass(kind, BaseException):
        bases = [base.__name__ for base in kind.__bases__]
        parts.append(f"An error; a kind of {' and '.join(f'`{base}`' for base in bases)}.")
    else:
        parts.append(_signature(name, kind))
    parts.append(_text(kind))
    for each, value in vars(kind).items():
        if each.startswith("_"):
            continue
        if isinstance(value, property):
            parts.append(f"#### {name}.{each}\n\n{_text(value)}")
        elif inspect.isfunction(value):
            signature = _signature(f"{name}.{each}", value)
            parts.append(f"#### {name}.{each}()\n\n{signature}\n\n{_text(value)}")
    return "\n\n".join(part for part in parts if part)


def _signature(name: str, value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except ValueError:  # some of those written in C tell nothing
        return ""
    told = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    # A parameter behind the last positional one is told by a star.
    keyword = next((n for n, each in enumerate(told) if each.kind is each.KEYWORD_ONLY), None)
    inner = list(map(_parameter, told))
    if keyword is not None and all(each.kind is not each.VAR_POSITIONAL for each in told):
        inner.insert(keyword, "*")
    returned = signature.return_annotation
    if inspect.isclass(value) or returned is signature.empty:
        returned = ""
    lead = "async def " if inspect.iscoroutinefunction(value) else ""
    end = f" -> {returned}" if returned else ""
    text = f"{lead}{name}({', '.join(inner)}){end}"
    if len(text) > 90:
        lines = "".join(f"    {each},\n" for each in inner)
        text = f"{lead}{name}(\n{lines}){end}"
    return f"```python\n{text}\n```"


def _parameter(parameter: inspect.Parameter) -> str:
    """As it is written in the code, not as Python shows it."""
    name = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        name = f"*{name}"
    if parameter.annotation is not parameter.empty:
        name += f": {parameter.annotation}"
    if parameter.default is parameter.empty:
        return name
    default: object = parameter.default
    if isinstance(default, enum.Enum):
        shown = str(default)
    elif callable(default):
        shown = "reverse"  # what servers do by default is what they do in tests, too
    else:
        shown = repr(default)
    return f"{name} = {shown}"


def _text(value: Any) -> str:
    return markdown(inspect.getdoc(value) or "")


def markdown(docstring: str) -> str:
    r"""A docstring of this project as Markdown.

    >>> markdown("Cut.\n\nArgs:\n    size: bytes,\n        at most.").split("\n\n")
    ['Cut.', 'Args:', '- `size`: bytes, at most.']
    """
    parts = []
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        lines = paragraph.split("\n")
        section = _SECTION.match(lines[0])
        if section is not None:
            title = section[1] + (f" ({section[2]})" if section[2] else "")
            parts += [f"{title}:", _items(lines[1:])]
        elif lines[0].startswith(">>>"):
            if parts and parts[-1].endswith("\n```") and "pycon" in parts[-1]:
                parts[-1] = parts[-1].removesuffix("\n```") + f"\n{paragraph}\n```"
            else:
                parts.append(f"```pycon\n{paragraph}\n```")
        elif lines[0].startswith("    "):
            code = "\n".join(line.removeprefix("    ") for line in lines)
            if parts[-1].startswith("```python"):
                parts[-1] = parts[-1].removesuffix("\n```") + f"\n\n{code}\n```"
            else:
                parts.append(f"```python\n{code}\n```")
        else:
            parts.append(re.sub(r"::$", ":", _quoted(paragraph)))
    return "\n\n".join(parts)


def _items(lines: list[str]) -> str:
    """The entries of a section as a list."""
    items: list[str] = []
    for line in lines:
        found = _ITEM.match(line)
        if found and not line.startswith("     "):
            names = ", ".join(f"`{each}`" for each in re.split(r",\s*", found[1]))
            items.append(f"- {names}: {found[2]}")
        elif items:
            items[-1] += f" {line.strip()}"
        else:
            items.append(f"- {line.strip()}")
    return "\n".join(map(_quoted, items))


def _quoted(text: str) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", text)
