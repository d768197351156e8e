from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *("torch", "grpc", "tritonclient", "httpx", "httpcore", "PIL", "pydantic", "asyncio", "pyarrow", "onnxruntime"),
    *("opentelemetry", "prometheus_client"),
)


def loaded_by(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import convoy", set()),
        ("from convoy import Client, AsyncClient", set()),
        ("from convoy import Client; Client('http://localhost').close()", {"httpcore", "asyncio"}),
        ("from convoy import Client; Client('grpc://localhost').close()", {"grpc", "tritonclient", "asyncio"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(code: str, needed: set[str]) -> None:
    assert loaded_by(code) <= needed


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_grpc_is_spoken_where_there_is_no_posix(kind: str) -> None:
    program = f"""
import asyncio, sys
sys.modules["fcntl"], sys.platform = None, "win32"
import numpy as np
from convoy import AsyncClient, Client
from convoy.contract.errors import UnavailableError
large = {{"x": np.zeros((1, 100_000), np.float32)}}
async def ask():
    async with AsyncClient("grpc://localhost:1", timeout_s=2) as client:
        await client.infer("m", large)
try:
    asyncio.run(ask()) if "{kind}" == "AsyncClient" else Client("grpc://localhost:1", timeout_s=2).infer("m", large)
except UnavailableError:
    raise SystemExit(0)
raise SystemExit("answered by nobody")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
