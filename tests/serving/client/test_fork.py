"""A client that is taken into a forked process (gunicorn's workers, ``multiprocessing``)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

FORKS = """
import os, sys, threading
import numpy as np
from convoy import Client

x = np.ones((1, 2), np.float32)
with Client(sys.argv[1], timeout_s=10) as client:
    def infer():
        return client.infer("echo", {"x": x})["y"].tolist() == x.tolist()

    assert infer()
    assert len(client.classify("digits", np.zeros((9, 4, 4, 1), np.uint8))) == 9  # with threads
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            ok = infer() and len(client.classify("digits", np.zeros((9, 4, 4, 1), np.uint8))) == 9
            os._exit(0 if ok else 9)
        children.append(child)
        assert infer()  # the parent's connections are not the child's
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    assert infer()
print("all answered")
"""


def test_a_forked_process_connects_anew(served: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, served.url], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "all answered\n"), done.stderr


FORKS_A_LOOP = """
import asyncio, os, sys
from convoy import AsyncClient
from convoy.contract.errors import UsageError

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        assert await client.live()
        child = os.fork()
        if not child:
            try:
                await client.live()
            except UsageError as error:
                os._exit(7 if "does not outlive a fork" in str(error) else 8)
            os._exit(9)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert await client.live()

asyncio.run(main())
print("all answered")
"""


def test_an_async_client_says_that_it_does_not_outlive_a_fork(served: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS_A_LOOP, served.url], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "all answered\n"), done.stderr
