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
