"""Which configurations Triton need not complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from convoy.serving.triton.completeness import is_complete

WHOLE = """name: "m" backend: "onnxruntime"
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WHOLE, True),
        (WHOLE.replace("dims: 2", "reshape { } ", 1), True),
        (WHOLE.replace('backend: "onnxruntime"', ""), False),
        (WHOLE.replace("dims: 2", "", 1), False),
        (WHOLE.replace("data_type: TYPE_FP32", "", 1), False),
        (WHOLE.split("output", maxsplit=1)[0], False),
        ("no configuration {", True),
    ],
)
def test_a_configuration_is_complete_with_backend_and_every_tensor(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "config.pbtxt").write_text(text)

    assert is_complete(tmp_path) is expected


def test_a_model_without_a_configuration_is_not(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
