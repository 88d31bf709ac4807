"""One connection of the trio front, shared by tasks. Used by ``nbclient.trio`` alone.

A task that waits for its reply looks round for what nobody does yet (``serve``),
in this order: to open the stream, to send what is queued, to read. Otherwise it
parks, and whoever leaves wakes one that can take on what is left.

What makes that safe:

* from the return of a read to the end of what it completes, there is no
  checkpoint: what was read cannot get lost by a cancellation;
* a socket says how much it has sent, so a cancelled send goes on later where it
  stopped. Other streams do not: ``send_all`` that is cancelled ends them;
* who sends waits one turn of the scheduler if there is a crowd: those who woke
  with it add their requests, and all go in one send;
* the deadline of those who wait is that of the scope in which the reader, or the
  sender, waits: no scope is opened for each request.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

from nbclient.errors import ConnectionLost, NbclientError
from nbclient.events import Event
from nbclient.exchange import Exchange, Request
from nbclient.pipeline import Pipeline
from nbclient.servers import Server
from nbclient.settings import Settings, lost, reasons_of
from nbnet.notation import Address

WORTH_WAITING = 0.001
"""Seconds; to wait for less costs more than it brings."""


LOOK_TURNS = 6
"""Turns of the scheduler that a stream may take to give what it has already."""


def _cancel_after(turns: int, scope: trio.CancelScope) -> None:
    # A deadline of now would not do: streams begin with a checkpoint.
    token = trio.lowlevel.current_trio_token()

    def turn(left: int) -> None:
        if left:
            token.run_sync_soon(turn, left - 1)
        else:
            scope.cancel()

    turn(turns)


class Owner(Protocol):
    """The client, as its connections know it."""

    def retire(self, connection: Connection, /) -> None:
        """It takes no further requests."""

    def gone(self, connection: Connection, /) -> None:
        """It is closed."""

    def reached(self, server: Server, /) -> None:
        """A server could be reached."""

    def missed(self, server: Server, reason: str, /) -> None:
        """A server could not be reached, or did not answer in time."""


class Call(Request):
    """A request, and the task that waits for it.

    ``started`` is when it was handed over, if anybody wants to know.
    """

    started = 0.0

    def abort(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        """Let go of the task, which is cancelled."""
        self.waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


class Connection:
    """A stream, once it is open, and the requests on it.

    Args:
        server: where it leads.
        settings: what the client was told.
        connect: opens the stream.
        owner: the client.

    Attributes:
        exchange: the requests under way.
        stream: None until it is open.
        closed: whether the stream was let go of.
        sending, reading: whether these roles are taken.
        heir: whom ``leave`` has woken to take a role, until that has run.
        worked: whether a reply has come on it.
        stale: whether it ended when nothing was outstanding that anybody waits for:
            no request is to blame.
    """

    def __init__(
        self,
        server: Server,
        settings: Settings,
        connect: Callable[[Address], Awaitable[trio.abc.Stream]],
        owner: Owner,
    ) -> None:
        self.server = server
        self.peer = server.name
        self.exchange = Exchange(server.name)
        self.stream: trio.abc.Stream | None = None
        self.closed = False
        self._settings = settings
        self._connect = connect
        self._owner = owner
        self._opening = self.sending = self.reading = False
        self._scopes: list[trio.CancelScope] = []  # in which those wait who have a role
        self._watched = -math.inf  # the latest of their deadlines
        self._reader: trio.CancelScope | None = None  # that of who reads
        self.heir: Request | None = None  # who was woken to take a role, and did not run yet
        self._rest: bytes | memoryview = b""  # taken from the exchange, not sent yet
        self._rested = False  # whether there was nothing to do: what comes then is not asked for
        self._opener = trio.CancelScope()  # in which who opens waits
        self._crowd = False  # whether several are woken at a time
        self._retired = False
        self._broken = False  # whether nothing can be sent any more
        self.worked = False
        self.stale = False

    # For one of many ---------------------------------------------------------------

    def enter(self, call: Call) -> None:
        """A request is to be sent, and its task is going to wait."""
        exchange = self.exchange
        if not exchange.wanted:
            self._rested = True
        exchange.add(call)
        if call.deadline < self._watched:
            self._watch(call.deadline)

    def leave(self, call: Call) -> bool:
        """A task does not wait any more; whether ``aclose`` has to follow."""
        exchange = self.exchange
        if self.heir is call:  # Ctrl-C may come before it has run
            self.heir = None
        if exchange.load or self._retired:
            self._hand_on()
        return exchange.fault is not None and not self.closed

    async def serve(self, call: Call) -> bool:
        """Take a role that is free, for a while; whether there was one."""
        if self.stream is None:
            if self._opening:
                return False
            await self._open(call.deadline)
        elif not self.sending and self._sendable:
            await self._send(call)
        elif not self.reading and not (self._rested and self.sending):
            await self._read()
        else:
            return False
        return True

    def _wake(self, request: Request) -> None:
        if request.waiter is not None:
            trio.lowlevel.reschedule(request.waiter)
            request.waiter = None

    @contextmanager
    def _waiting(self, deadline: float) -> Iterator[trio.CancelScope]:
        """A scope for who has a role: to be woken by the deadlines of all who wait."""
        with trio.CancelScope(deadline=deadline) as scope:
            self._scopes.append(scope)
            self._watched = max(self._watched, deadline)
            try:
                yield scope
            finally:
                self._scopes.remove(scope)
                self._watched = max((s.deadline for s in self._scopes), default=-math.inf)

    def _watch(self, deadline: float) -> None:
        """A deadline that is earlier than those waited for."""
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, deadline)

    def _hand_on(self) -> None:
        """Have others take the roles that are free."""
        exchange = self.exchange
        if not exchange.load:
            if self._retired and self.stream is not None and exchange.fault is None:
                self.end(self._settings.closed(self.peer))
            return
        if exchange.fault is not None:
            return
        if not exchange.wanted:
            # Nobody waits any more. A reply may still come, and will be dropped;
            # but half a request is not to hang there.
            if self._rest or self._retired:
                self.end(self._settings.closed(self.peer))
            return
        if self.heir is not None:
            return
        if self.stream is None:
            free = not self._opening
        else:
            free = not self.reading or (self._sendable and not self.sending)
        if free:
            self.heir = exchange.waiting() if self.stream else exchange.most_patient()
            if self.heir is not None:
                self._wake(self.heir)
            elif self._reader is not None and not self.sending:
                # The only one left reads, for replies to what it has yet to send.
                self._reader.cancel()

    async def wait_open(self, call: Call) -> None:
        """Wait until somebody has opened it, or the time is over.

        By one's own clock: that of who opens ends the attempt, for all.
        """
        with trio.move_on_at(call.deadline) as scope:
            await trio.lowlevel.wait_task_rescheduled(call.abort)
        if scope.cancelled_caught and self.stream is None:
            self._late_to_open()
        elif scope.cancelled_caught:
            self._expire()

    def _late_to_open(self) -> None:
        for request in self.exchange.expire(trio.current_time()):
            request.error = self._settings.connect_timed_out(request.limit, self.peer)
            self._wake(request)

    async def _open(self, own: float) -> None:
        """The role of who opens: connect, for all who wait."""
        self._opening = True
        started = trio.current_time()
        give_up = started + self._settings.connect_timeout
        stream: trio.abc.Stream | None = None
        try:
            with trio.CancelScope(deadline=min(give_up, own)) as self._opener:
                stream = await self._connect(self.server.address)
        except OSError as error:
            failure = self._settings.cannot_connect({self.peer: reasons_of(error)})
            failure.__cause__ = error
            self._not_opened(failure, failure.reasons[self.peer], started)
            return
        finally:
            self._opening = False
        if stream is None:
            now = trio.current_time()
            if own <= now < give_up:
                self._owner.missed(self.server, f"no connection within {now - started:.3g} s")
            if give_up <= now:
                seconds = self._settings.connect_timeout
                failed = self._settings.connect_timed_out(seconds, self.peer)
                self._not_opened(failed, str(failed), started)
            self._late_to_open()
            return
        self._rested = False
        if self.exchange.fault is not None:  # closed meanwhile
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            return
        self.stream = stream
        self._owner.reached(self.server)
        self._tell("connect", started)

    def _not_opened(self, failure: NbclientError, reason: str, started: float) -> None:
        self._owner.missed(self.server, reason)
        self._tell("connect", started, failure)
        self.end(failure)

    async def _look(self) -> None:
        """Before a request is sent on a connection for which nobody waited: is it as it was?

        What has come meanwhile are replies to requests that were given up, or
        nobody has asked for it, be it the end.
        """
        assert self.stream is not None
        self.reading = True
        try:
            if isinstance(self.stream, trio.SocketStream):
                while self.exchange.fault is None and self.stream.socket.is_readable():
                    await self._take_in()
            else:
                nothing = False
                while self.exchange.fault is None and not nothing:
                    with trio.CancelScope() as scope:
                        _cancel_after(LOOK_TURNS, scope)
                        await self._take_in()
                    nothing = scope.cancelled_caught
        finally:
            self.reading = False
        if self.exchange.fault is not None:
            self.stale = True
            self.end(self.exchange.fault)

    async def _take_in(self) -> None:
        assert self.stream is not None
        due = self.exchange.outstanding
        try:
            data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            cause = error.__cause__ or error
            self.exchange.poison(lost(self.peer, cause, maybe_executed=False))
        else:
            self.exchange.complete(bytes(data))
            if not due:  # then not even a line end is welcome
                self.exchange.poison(ConnectionLost(f"{self.peer} sent something unasked"))

    @property
    def _sendable(self) -> bool:
        return not self._broken and (bool(self._rest) or self.exchange.sendable)

    async def _send(self, call: Call) -> None:
        """The role of who sends: all that is queued, as far as the window goes."""
        self.sending = True
        try:
            if self._crowd:
                await trio.lowlevel.checkpoint()
            if call.done:
                return  # it ended meanwhile, and may be closed
            if self._rested and not self.reading:  # who reads would have noticed
                await self._look()
            self._rested = False
            while self._sendable and not call.done:
                await self._push(self._rest or self.exchange.take())
        finally:
            self.sending = False

    async def _push(self, data: bytes | memoryview) -> None:
        assert self.stream is not None
        self._rest = data
        deadline = self.exchange.next_deadline()
        try:
            with self._waiting(deadline) as scope:
                if isinstance(self.stream, trio.SocketStream):
                    while self._rest:
                        sent = await self.stream.socket.send(self._rest)
                        self._rest = memoryview(self._rest)[sent:]
                else:
                    await self.stream.send_all(data)
                self._rest = b""
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            # Replies sent before may still be there to be read, and reading will
            # tell of the end.
            self._broken = self._retired = True
            self._owner.retire(self)
        except trio.Cancelled:
            self._cut_off(scope)
            raise
        except BaseException as error:  # nobody knows what was sent
            self.end(lost(self.peer, error, maybe_executed=True), error)
            raise
        else:
            if scope.cancelled_caught:
                self._cut_off(scope)

    def _cut_off(self, scope: trio.CancelScope) -> None:
        """Sending was cancelled, by a deadline here or by the task's own."""
        if scope.cancel_called:
            self._expire()
        if not isinstance(self.stream, trio.SocketStream):
            text = f"a request to {self.peer} was cancelled while it was being sent"
            self.end(ConnectionLost(text))

    async def _read(self) -> None:
        """The role of who reads: once, for all."""
        assert self.stream is not None
        self.reading = True
        data: bytes | bytearray | None = None
        try:
            with self._waiting(self.exchange.next_deadline()) as self._reader:
                data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            cause = error.__cause__ or error
            self.end(lost(self.peer, cause, maybe_executed=True), cause)
            return
        except trio.Cancelled:
            raise
        except BaseException as error:  # nobody knows what was read
            self.end(lost(self.peer, error, maybe_executed=True), error)
            raise
        finally:
            self.reading = False
            self._reader = None
        if data is None:
            self._expire()
            return
        done = self.exchange.complete(bytes(data))  # no copy of what is bytes already
        self.worked = True
        self._crowd = len(done) > 1
        reschedule = trio.lowlevel.reschedule
        for request in done:
            if request.waiter is not None:
                reschedule(request.waiter)
                request.waiter = None
        if self.exchange.fault is not None:
            self.end(self.exchange.fault)

    def _expire(self) -> None:
        """Let those know whose time is over."""
        late = self.exchange.expire(trio.current_time())
        for request in late:
            request.error = self._settings.timed_out(
                request.limit, self.peer, maybe_executed=request.sent
            )
            self._wake(request)
        if late and not self._retired:
            # It may well be dead: others are not to wait for that, too.
            self._retired = True
            self._owner.retire(self)
            self._owner.missed(self.server, str(late[0].error))

    # The end -------------------------------------------------------------------------

    def end(self, fault: NbclientError, cause: BaseException | None = None) -> None:
        """Let nothing more happen, and tell all who wait. ``aclose`` has to follow."""
        if cause is not None and fault.__cause__ is None:
            fault.__cause__ = cause
        self.stale = self.stale or (self.stream is not None and not self.exchange.awaited)
        self.exchange.poison(fault)
        self._owner.retire(self)
        for request in self.exchange.fail():
            self._wake(request)
        for scope in (*self._scopes, self._opener):
            scope.cancel()

    async def aclose(self) -> None:
        """Close the stream by force, which does not block."""
        if self.closed:
            return
        self.closed = True
        self._owner.gone(self)
        if self.stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self.stream)
            self._tell("close", trio.current_time())

    def _tell(self, kind: str, started: float, error: NbclientError | None = None) -> None:
        seconds = trio.current_time() - started
        if kind == "connect":
            self._settings.observer(Event("connect", self.peer, seconds, error=error))
        else:
            self._settings.observer(Event("close", self.peer))

    # For one alone -------------------------------------------------------------------

    async def prepare(self, deadline: float, limit: float) -> bool:
        """Be open, for a caller that has the connection alone; whether it is of use.

        Raises:
            ConnectError: no connection could be made.
            ConnectTimeout: not in time.
        """
        if self.stream is not None:
            self._rested = True
            try:
                await self._look()
            except BaseException:
                self.end(self._settings.closed(self.peer))
                raise
            finally:
                if self.exchange.fault is not None:
                    await self.aclose()
            return self.exchange.fault is None
        request = Call(b"", deadline, limit)
        self.exchange.add(request)
        try:
            await self._open(deadline)
        finally:
            self.exchange.abandon(request)
            if self.stream is None or self.exchange.fault is not None:
                self.end(self._settings.closed(self.peer))
                await self.aclose()
        if request.error is not None:
            raise request.error
        return True

    async def send_many(self, pipeline: Pipeline, deadline: float) -> bool:
        """Send what is to go; whether more can be sent later."""
        assert self.stream is not None
        data = pipeline.take()
        if not data:
            return True
        with trio.move_on_at(deadline) as scope:
            try:
                await self.stream.send_all(data)
            except trio.BrokenResourceError:
                # Replies sent before may still be there to be read, and reading
                # will tell of the end.
                return False
            except trio.ClosedResourceError as error:
                raise self._ended(error) from error
        if scope.cancelled_caught:
            raise self._late()
        return True

    async def receive_many(self, pipeline: Pipeline, deadline: float, *, wait: bool) -> list[bytes]:
        """The replies that come next; none if they take longer than the payloads do.

        Args:
            wait: whether to wait for one, as no more can be sent without.
        """
        assert self.stream is not None
        if pipeline.fault is not None:
            raise self._ended(None, pipeline)
        if not wait:
            patience = max(pipeline.patience, WORTH_WAITING)
            deadline = min(deadline, trio.current_time() + patience)
        with trio.move_on_at(deadline) as scope:
            replies: list[bytes] = []
            while not replies:
                try:
                    data = await self.stream.receive_some()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise self._ended(error) from error
                replies = pipeline.receive(bytes(data))
                if not replies and pipeline.fault is not None:
                    raise self._ended(None, pipeline)
        if scope.cancelled_caught and wait:
            raise self._late()
        return replies

    def _late(self) -> NbclientError:
        return self._settings.timed_out(self._settings.timeout, self.peer, maybe_executed=True)

    def _ended(
        self, error: BaseException | None, pipeline: Pipeline | None = None
    ) -> NbclientError:
        if self.exchange.fault is not None:  # the client was closed
            return self.exchange.failure(maybe_executed=True)
        if pipeline is not None:
            return pipeline.failure(maybe_executed=True)
        assert error is not None
        return lost(self.peer, error.__cause__ or error, maybe_executed=True)
