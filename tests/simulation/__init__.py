"""The real loops in a simulated world: one kernel, any network, seeded and repeatable.

``kernel`` has the clock, the processes and who runs when, ``network`` the
sockets between them, ``poller`` epoll, ``faults`` what goes wrong. The worlds put
real code into it: ``server_world`` the event loop among scripted ``peers``,
``load_world`` the load engine against the event loop, ``client_world`` the
blocking client against it, and ``trio_world`` that for trio. ``torture`` has one
call fail after the other. ``runs`` plays a seed, ``python -m simulation`` many::

    PYTHONPATH=tests .venv/bin/python -m simulation --world server --seeds 10000
    PYTHONPATH=tests .venv/bin/python -m simulation --world server --first 17 --seeds 1 --trace

The rules:

* all that is random comes from one ``random.Random`` of the seed, and nothing
  depends on hashes, addresses or the real time: a seed is the same run everywhere;
* time passes when nobody has anything to do, or where a fault says so;
* checks are made at every call, by a model of its own (``account``), not at the end.
"""
