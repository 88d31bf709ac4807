"""The manual: what of it is made from the code, and whether what it shows is true.

    PYTHONPATH=tests python -m manual           # write what is made from the code
    PYTHONPATH=tests python -m manual --check   # only say what is not current
    pytest tests/manual                         # that, and every command and snippet

In the rooms: ``pages`` reads Markdown; ``generated`` fills the parts of pages that
stand between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``, with what
``options``, ``docstrings`` and ``tables`` make of the code; ``running`` does what a
page shows, ``likeness`` compares what came of it, and ``exceptions`` is the one
list of what is not done, each with its reason.
"""
