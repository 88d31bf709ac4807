"""``python -m loadgen``: the command ``loadgen``."""

from loadgen.cli import main

main()
