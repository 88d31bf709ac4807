"""The mutants that are no bugs, each with the reason (``equivalent.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mutation.playing import Outcome

FILE = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True, slots=True)
class Survivor:
    """A change that no test found.

    Attributes:
        module: the name of the target.
        place: the function, as ``FrameDecoder.feed``, or the table.
        old: the line, stripped, as it is.
        new: as it was changed to.
    """

    module: str
    place: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.module}: {self.place}\n    - {self.old}\n    + {self.new}"


@dataclass(frozen=True, slots=True)
class Known:
    """Those that are known, with their reasons."""

    reasons: dict[Survivor, str]

    def why(self, survivor: Survivor) -> str | None:
        """The reason why it is no bug; None for those that nobody has judged."""
        return self.reasons.get(survivor)

    def gone(self, outcomes: Iterable[Outcome]) -> list[Survivor]:
        """Those that did not survive, in the modules that were played."""
        played = {outcome.name for outcome in outcomes}
        survived = {survivor for outcome in outcomes for survivor in outcome.survivors}
        return [each for each in self.reasons if each.module in played and each not in survived]


def read_known() -> Known:
    """Read ``equivalent.toml``."""
    data = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return Known(
        {
            Survivor(module, entry["in"], entry["old"], entry["new"]): entry["why"]
            for module, entries in data.items()
            for entry in entries
        }
    )
