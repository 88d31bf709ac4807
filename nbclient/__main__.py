"""``python -m nbclient``: the command ``nbclient``."""

from nbclient.cli import main

main()
