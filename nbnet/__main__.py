"""``python -m nbnet``: the command ``nbnet``."""

from nbnet.cli import main

main()
