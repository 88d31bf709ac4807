"""Pages of the manual: their blocks, their links, their headings.

A block is what stands between two fences. A paragraph that ends in the name of
a file and a colon, as in "with this `shout.py`:", says that the block after it is
that file; one with an absolute path only says where a reader is to put it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda path: path.as_posix()
)

_FENCE: Final = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"`([\w.-][\w./-]*\.[a-z]+)`:\s*\Z")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_QUOTED: Final = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_HEADING: Final = re.compile(r"^#+ (.*)$", re.MULTILINE)
_GENERATED: Final = re.compile(
    r"(^<!-- begin: (?P<name>[\w.:-]+) -->\n)(?P<text>.*?)(^<!-- end: (?P=name) -->$)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences.

    Attributes:
        page: its path from the root of the project.
        line: where its first line stands in the page, from 1.
        language: what stands behind the first fence.
        text: the lines.
        file: the file that it is; None if it is none.
    """

    page: str
    line: int
    language: str
    text: str
    file: str | None

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return f"{self.page}:{self.line}"


def name_of(path: Path) -> str:
    """The path of a page from the root of the project."""
    return path.relative_to(ROOT).as_posix()


def blocks_of(name: str, text: str) -> list[Block]:
    """The blocks of a page, but for those made from the code.

    >>> [block] = blocks_of("a.md", "Here `a.py`:\\n\\n```py\\nx\\n```\\n")
    >>> block.line, block.file, block.text
    (4, 'a.py', 'x\\n')
    """
    # The same number of lines, so that the places are right.
    text = _GENERATED.sub(lambda found: "\n" * found[0].count("\n"), text)
    blocks = []
    for found in _FENCE.finditer(text):
        before = text[: found.start()]
        named = _FILE.search(before.rstrip())
        blocks.append(
            Block(
                name,
                before.count("\n") + 2,
                found[2],
                textwrap.dedent(found[3]),
                None if named is None else named[1],
            )
        )
    return blocks


def generated_in(text: str) -> Iterator[str]:
    """The names of the parts of a page that are made from the code."""
    for found in _GENERATED.finditer(text):
        yield found["name"]


def fill(text: str, name: str, made: str) -> str:
    """A page with one of these parts replaced.

    >>> fill("<!-- begin: a -->\\nold\\n<!-- end: a -->\\n", "a", "new")
    '<!-- begin: a -->\\n\\nnew\\n\\n<!-- end: a -->\\n'
    """
    return _GENERATED.sub(
        lambda found: (
            f"{found[1]}\n{made.strip()}\n\n{found[4]}" if found["name"] == name else found[0]
        ),
        text,
    )


def links_of(text: str) -> list[str]:
    """What the links of a page lead to; none of those in blocks."""
    return _LINK.findall(_FENCE.sub("", text))


def quoted_in(text: str) -> list[str]:
    """What stands between backticks in the sentences and tables of a page.

    >>> quoted_in("Run `a  --b` or\\n`c\\nd`.")
    ['a --b', 'c d']
    """
    return [" ".join(each.split()) for each in _QUOTED.findall(_FENCE.sub("", text))]


def anchors_of(text: str) -> set[str]:
    """The names by which the headings of a page are linked to, as forges make them.

    >>> anchors_of("# A page: its `parts`\\n")
    {'a-page-its-parts'}
    """
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", each).lower()).replace(
            " ", "-"
        )
        for each in headings
    }
