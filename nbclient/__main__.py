"""``python -m nbclient``: the command ``nbclient``."""

from nbnet.entry import nbclient

nbclient()
