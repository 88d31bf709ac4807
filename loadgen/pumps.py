"""The loops of the engine: what is done between one batch of events and the next.

This is the hottest code of the load generator; the rest is called from here as
little as possible. The rules are in ``engine``. The three loops share their
frame and their way to read on purpose by repetition: a call for each event
would cost as much as all else that is done with it in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from loadgen.connection import NEVER, kind_of_error
from loadgen.load import LATE
from loadgen.recording import FOLD_AT
from nbnet.pollers import READ

if TYPE_CHECKING:
    from loadgen.engine import Engine

MAX_EVENTS: Final = 8192
"""Events taken in one batch."""
SPIN: Final = 20_000
"""Nanoseconds for which it does not pay to have the kernel wait."""


def pump_plain(engine: Engine, until: int) -> None:
    """The plain closed loop: a reply came, the next request goes."""
    load, recorder = engine.load, engine.recorder
    clock, poll, get, take = (
        engine.clock,
        engine.poller.poll,
        load.connections.get,
        engine.pool.take,
    )
    read_size, end = engine.read_size, engine.end
    latencies = recorder.latencies
    record = latencies.append
    while not (engine.stopped or load.is_over):
        now = clock()
        if now >= until:
            break
        if now >= engine.next_look:
            engine.look(now)
        for fd, mask in poll((min(engine.next_look, until) - now) / 1e9, MAX_EVENTS):
            connection = get(fd)
            if mask != READ or connection is None:
                engine.handle(fd, mask)
                continue
            # Nearly every event ends up here.
            try:
                data = connection.recv(read_size)
            except BlockingIOError:
                continue
            except OSError as error:
                load.lose(connection, kind_of_error(error))
                continue
            now = clock()
            if data != connection.ready or now > end:
                if now > end:
                    engine.stop_sending(end)
                load.receive(connection, data, now)
                continue
            record(now - connection.sent)
            message = connection.message = take()
            frame, connection.ready = message
            connection.sent = now
            try:
                sent = connection.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                load.lose(connection, kind_of_error(error))
                continue
            if sent != len(frame):
                load.wait_to_send(connection, frame[sent:])
        while len(latencies) >= FOLD_AT:
            recorder.fold()
        if load.ended:
            load.close_ended()


def pump_open(engine: Engine, until: int) -> None:
    """The plain open loop: a reply frees its connection, and what is due takes one."""
    load, recorder = engine.load, engine.recorder
    clock, get, take = engine.clock, load.connections.get, engine.pool.take
    free, times, origin = load.free, load.times, load.origin
    read_size, end = engine.read_size, engine.end
    latencies, services, lags = recorder.latencies, recorder.services, recorder.lags
    while not (engine.stopped or load.is_over):
        now = clock()
        if now >= until:
            break
        if now >= engine.next_look:
            engine.look(now)
        if load.due <= now:
            load.dispatch(now)
            now = clock()
        before = load.in_flight
        for fd, mask in _events(engine, min(engine.next_look, until, load.due) - now):
            connection = get(fd)
            if mask != READ or connection is None:
                engine.handle(fd, mask)
                continue
            try:
                data = connection.recv(read_size)
            except BlockingIOError:
                continue
            except OSError as error:
                load.lose(connection, kind_of_error(error))
                continue
            now = clock()
            if data != connection.ready or now >= end:
                if now >= end:
                    engine.stop_sending(end)
                load.receive(connection, data, now)
                if load.due <= now:
                    load.dispatch(now)
                continue
            latencies.append(now - connection.due)
            services.append(now - connection.sent)
            connection.replies += 1
            due = load.arrival
            if due > now:
                connection.message = connection.ready = None
                free.append(connection)
                load.in_flight -= 1
                load.due = due
                continue
            if free:
                # It has not waited for a connection, but for this loop. The one
                # that is free for longest takes it.
                lags.append(now - due)
                connection.message = connection.ready = None
                free.append(connection)
                connection = free.popleft()
                if connection.ended:
                    load.in_flight -= 1
                    load.dispatch(now)
                    continue
            if now - due > LATE:
                recorder.counts.late += 1
            message = connection.message = take()
            frame, connection.ready = message
            connection.due, connection.sent = due, now
            load.arrival = due = origin + next(times, NEVER)
            try:
                sent = connection.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                load.lose(connection, kind_of_error(error))
                continue
            if sent != len(frame):
                load.wait_to_send(connection, frame[sent:])
            if due <= now and free:
                load.dispatch(clock())
        if free:
            load.due = load.arrival
        engine.watch(clock(), before)
        while len(latencies) >= FOLD_AT:
            recorder.fold()
            if load.due <= (now := clock()):
                load.dispatch(now)
        if load.ended:
            load.close_ended()


def pump(engine: Engine, until: int) -> None:
    """Any other load: requests go when they are due, and replies free their connections."""
    load, recorder = engine.load, engine.recorder
    clock, get = engine.clock, load.connections.get
    record, release, receive, dispatch = (
        load.record,
        load.release,
        load.receive,
        load.dispatch,
    )
    read_size, end = engine.read_size, engine.end
    latencies = recorder.latencies
    while not (engine.stopped or load.is_over):
        now = clock()
        if now >= until:
            break
        if now >= engine.next_look:
            engine.look(now)
        if load.due <= now:
            dispatch(now)
            now = clock()
        before = load.in_flight
        for fd, mask in _events(engine, min(engine.next_look, until, load.due) - now):
            connection = get(fd)
            if mask != READ or connection is None:
                engine.handle(fd, mask)
                continue
            try:
                data = connection.recv(read_size)
            except BlockingIOError:
                continue
            except OSError as error:
                load.lose(connection, kind_of_error(error))
                continue
            now = clock()
            if now >= end:
                engine.stop_sending(end)
            if data == connection.ready:
                release(connection, record(connection, now), now)
            else:
                receive(connection, data, now)
            if load.due <= now:
                dispatch(now)
        engine.watch(clock(), before)
        while len(latencies) >= FOLD_AT:
            recorder.fold()
            if load.due <= (now := clock()):
                dispatch(now)
        if load.ended:
            load.close_ended()


def _events(engine: Engine, delay: int) -> Sequence[tuple[int, int]]:
    """Wait for events, but no longer than so many nanoseconds."""
    if delay > SPIN and not engine.wait(delay / 1e9):
        return ()
    return engine.poller.poll(0, MAX_EVENTS)
