"""A Dask cluster on this machine: a scheduler in this process, and workers that it begins.

The workers are forked, before this process has a second thread: they need not import anything, and
have the plan that it has made. They end with it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from ctcli.ops.runtime import collect_again

_HOST = "127.0.0.1"
_END_SECONDS = 5.0
_WAIT_SECONDS = 0.005  # between looks whether the workers are there
# What Dask's own workers do many times a second takes the cores that the files need, and what they
# serve by HTTP takes a while to import.
_CALM = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],
    "distributed.scheduler.http.routes": [],
    "distributed.admin.tick.interval": "1s",
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
}


@contextmanager
def local_cluster(count: int, threads: int) -> Iterator[Any]:
    """A cluster that is there within the block.

    Args:
        count: of workers.
        threads: of each.
    """
    from dask import config
    from distributed import LocalCluster

    config.set(_CALM)
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    begun = []
    for _ in range(count):
        end, receiver = context.Pipe()
        process = context.Process(target=_serve, args=(receiver, threads), daemon=True)
        process.start()
        begun.append((process, end))
    try:
        with LocalCluster(
            n_workers=0,
            host=_HOST,
            dashboard_address=f"{_HOST}:0",
            silence_logs=logging.CRITICAL,
        ) as cluster:
            for _, end in begun:
                end.send(cluster.scheduler_address)
            while len(cluster.scheduler.workers) < sum(each.is_alive() for each, _ in begun):
                time.sleep(_WAIT_SECONDS)
            yield cluster
            for process, _ in begun:
                process.terminate()
    finally:
        for process, _ in begun:
            process.join(_END_SECONDS)
            process.kill()


def silence() -> None:
    """Have Dask log nothing: what matters is told by us. Call it once it is imported."""
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith(("distributed", "tornado")):
            logging.getLogger(name).disabled = True


def _serve(receiver: Connection, threads: int) -> None:
    """Be a worker, until this process is told to end or the one that began it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    collect_again()
    parent = multiprocessing.parent_process()
    assert parent, "another process begins it"
    if receiver in wait([receiver, parent.sentinel]):
        with suppress(Exception):
            asyncio.run(_work(receiver.recv(), threads, parent.sentinel))
    os._exit(0)  # jobs of a run that has ended may be under way


async def _work(scheduler: str, threads: int, sentinel: int) -> None:
    from dask import config
    from distributed import Worker

    config.set(_CALM)
    silence()
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_reader(sentinel, told.set)
    async with Worker(scheduler, nthreads=threads, memory_limit=0, host=_HOST) as worker:
        ends = [asyncio.ensure_future(each) for each in (told.wait(), worker.finished())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
