"""Fuzzing: what cuts a stream into messages, against a simple reference, for any bytes.

``targets`` are plain functions of bytes that raise when something differs;
``mutator`` makes inputs, fast and by a seed; ``corpus`` keeps those that matter.

    PYTHONPATH=tests python -m fuzz --inputs 1M --seed 1 --processes 2
    PYTHONPATH=tests python -m fuzz.guided decoder --seconds 60    # needs atheris
"""
