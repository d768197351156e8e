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
