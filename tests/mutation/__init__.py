"""What the tests do not notice: mutants of the code that no test finds; see ``__main__``."""
