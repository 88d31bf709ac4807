"""Threads in memory: jobs run when the test says so, in the order that it says."""

from __future__ import annotations

from collections.abc import Callable

from nbnet.threads import Job


class FakePool:
    """What ``nbnet.threads.ThreadPool`` is to a loop, without threads."""

    def __init__(self, window: int = 2, on_done: Callable[[], None] = lambda: None) -> None:
        self.window = window
        self.todo: list[tuple[object, Job]] = []
        self.done: list[tuple[object, Job]] = []
        self.most = 0  # jobs of all owners at a time
        self.on_done = on_done

    def submit(self, owner: object, job: Job, /) -> None:
        self.todo.append((owner, job))
        self.most = max(self.most, len(self.todo))

    def take_done(self) -> list[tuple[object, Job]]:
        done, self.done = self.done, []
        return done

    def run(self, index: int = 0) -> None:
        """Have a thread do the job that stands at this place of those that wait."""
        owner, job = self.todo.pop(index)
        job.run()
        self.done.append((owner, job))
        self.on_done()
