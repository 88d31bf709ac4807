"""Soak: a real server, real clients and hostile ones for a long time; see ``__main__``."""
