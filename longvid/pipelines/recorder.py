"""The thread that writes a render: blocks to the file and then the journal, now and then a snapshot to the journal.

Jobs wait in a queue of two, so that a slow disk stops the rollout instead of filling the memory. A snapshot of a large
model has gigabytes, and the blocks behind it wait for it: there is one at a time, and a rest after each.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

import numpy as np

from longvid.errors import DiskFullError
from longvid.media.journal import BlockRecord, RenderJournal, Snapshot, frame_md5s
from longvid.media.writer import VideoWriter

logger = logging.getLogger(__name__)

_QUEUED = 2
_SNAPSHOT_SECONDS = 15.0
"""Least time before the first snapshot, and between two."""
_SNAPSHOT_REST = 20
"""A snapshot comes after so many times as long as the one before took, to copy and to write. So they take less than a
twentieth of the time, however slow the disk is; but what the first one takes is known only behind it."""


class Recorder:
    """Writes to ``writer`` and ``journal`` in the order of the calls; ``close`` says what went wrong."""

    def __init__(self, writer: VideoWriter, journal: RenderJournal) -> None:
        self._writer, self._journal = writer, journal
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUED)
        self._error: BaseException | None = None
        self._none_pending = threading.Event()
        self._none_pending.set()
        self._rest_until = time.perf_counter() + _SNAPSHOT_SECONDS
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="longvid-writer", daemon=True)
        self._thread.start()

    def block(self, index: int, frames_THWC: np.ndarray, marks: tuple[str, ...]) -> None:
        def write() -> None:
            frames, size = self._writer.append(frames_THWC)
            self._journal.record(BlockRecord(index, frames, size, frame_md5s(frames_THWC), marks))

        self._put(write)

    @property
    def rested(self) -> bool:
        """Whether it is time for a snapshot again: none is on its way, and the last one's time is made up for."""
        return self._none_pending.is_set() and time.perf_counter() > self._rest_until

    def snapshot(self, take: Callable[[], Snapshot]) -> None:
        """Write what ``take`` copies, once the snapshot before is written: one alone may be gigabytes of memory."""
        while not self._none_pending.wait(0.2):
            if not self._thread.is_alive():
                raise _Stopped
        begun = time.perf_counter()
        snapshot = take()
        copied = time.perf_counter() - begun

        def write() -> None:
            begun = time.perf_counter()
            try:
                self._journal.snapshot(snapshot)
            except DiskFullError as error:
                self._warn(snapshot, error)
            now = time.perf_counter()
            self._rest_until = now + max(_SNAPSHOT_SECONDS, _SNAPSHOT_REST * (copied + now - begun))
            self._none_pending.set()

        self._none_pending.clear()
        self._put(write)

    def _warn(self, snapshot: Snapshot, error: DiskFullError) -> None:
        """Once: a disk that is full now may still be so when the next snapshot is due."""
        if not self._warned:
            gigabytes = sum(tensor.nbytes for tensor in snapshot.tensors.values()) / 1e9
            logger.warning(
                "no room on the disk for a snapshot of %.2f GB (%s): the render goes on; were it stopped, resume would "
                "make again what is behind the snapshot before, or everything if there is none",
                gigabytes,
                os.strerror(error.errno or errno.ENOSPC),
            )
        self._warned = True

    def close(self) -> None:
        """Wait until everything is written; raise what went wrong."""
        with contextlib.suppress(_Stopped):
            self._put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _put(self, job: Callable[[], None] | None) -> None:
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(job, timeout=0.2)
                return
        raise _Stopped

    def _work(self) -> None:
        try:
            while (job := self._queue.get()) is not None:
                job()
                del job  # it holds the frames, or the snapshot
        except BaseException as error:
            self._error = error


class _Stopped(Exception):
    """The writer thread has ended; ``close`` says why."""
