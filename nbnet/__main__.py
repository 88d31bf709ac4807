"""``python -m nbnet``: the command ``nbnet``."""

from nbnet.cli import app

app(prog_name="nbnet")
