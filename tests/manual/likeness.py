"""Whether what a command printed is what a page shows, whatever the figures.

Three rules:

* figures (numbers with their units, addresses with ports, a dash for what was not
  measured, which of two is called faster) are taken for equal, and so is how lines
  are wrapped and columns are filled;
* paragraphs that begin in capitals, as in ``LOADER-BOUND: its worker used 93 %``,
  depend on the machine and are left out, but for the verdict;
* so are lines that tell every five seconds how far a run is.

Everything else is compared word by word; a line ``...`` stands for any others.
"""

from __future__ import annotations

import re
from typing import Final

_FIGURE: Final = re.compile(
    r"(?<![\w.])(?:[-+]|\+-)?\d[\d,.:]*(?:[kMx]\b|\s?(?:us|ms|s|B|KiB|MiB|bytes)\b|\s?%)?(?!\w)"
)
_DASH: Final = re.compile(r"(?<!\S)-(?!\S)")
_CALLED: Final = re.compile(r"\b(?:slower|faster|no difference shown)(?!\S)")
_NOTE: Final = re.compile(r"(?!OK:|FAILED:|INTERRUPTED:|CAPACITY:)[A-Z][A-Z' -]+: ")
_PROGRESS: Final = re.compile(
    r"^(?:connecting|ready|warming up|waiting for late replies|[\d,hms ]+ of [\d,hms ]+"
    r"(?: requests)?): .*\n?",
    re.MULTILINE,
)


def masked(text: str) -> str:
    """What has to be equal.

    >>> masked("latency  101 ms   -\\n\\nNOTE: a\\nb\\n\\nOK: 3 passed")
    'latency # # OK: # passed'
    >>> masked("5 s of 10 s: 12,708 requests/s, p50 1.16 s\\nOK: 3 passed")
    'OK: # passed'
    """
    text = _PROGRESS.sub("", text)
    kept = [each for each in re.split(r"\n\s*\n", text) if not _NOTE.match(each.strip())]
    text = _FIGURE.sub("#", " ".join("\n\n".join(kept).split()))
    return _CALLED.sub("#", _DASH.sub("#", text))


def alike(shown: str, printed: str) -> bool:
    """Whether a page may show this for that.

    >>> alike("3 sent\\n...\\nOK", "12 sent\\nmuch\\nelse\\nOK")
    True
    >>> alike("3 sent", "3 received")
    False
    """
    pattern = ".*".join(
        re.escape(masked(part).strip()) for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE)
    )
    # What stands between two parts may be nothing at all.
    return re.fullmatch(pattern, masked(printed), re.DOTALL) is not None
