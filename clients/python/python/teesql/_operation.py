"""Waiting for operations of the native module.

An operation is a future that this side polls: its descriptor says when. So waiting needs no thread, never holds the
interpreter's lock, can be interrupted, and does not block asyncio.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from typing import Any

from . import _native


def wait(operation: _native.Operation, *, timeout: float | None = None) -> Any:
    """Waits on this thread. After ``timeout`` seconds in all the operation is ended, and the built-in `TimeoutError` raised."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        result = operation.poll()
        if result is None:
            poller = select.poll()
            poller.register(operation.fileno(), select.POLLIN)
            while result is None:
                left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
                if not poller.poll(left):
                    raise TimeoutError(f"the operation took longer than {timeout} s")
                result = operation.poll()
        return result[0]
    finally:
        operation.cancel()


async def wait_async(operation: _native.Operation) -> Any:
    """Waits in asyncio's event loop. If the task is cancelled, the operation is ended."""
    loop = asyncio.get_running_loop()
    # A duplicate, since the operation closes its descriptor when it ends, and the number is then used again.
    descriptor = -1
    try:
        result = operation.poll()
        if result is None:
            descriptor = os.dup(operation.fileno())
            ready = asyncio.Event()
            loop.add_reader(descriptor, ready.set)
            while result is None:
                await ready.wait()
                ready.clear()
                result = operation.poll()
        return result[0]
    finally:
        if descriptor >= 0:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        operation.cancel()
