"""Fields a second of the check reader, and what decoding costs beside its network (``python -m benchmarks.reader_speed``).

The shipped file runs in ONNX Runtime as it is, and cut behind its network's last layer; then behind the real server, through the
client. Fields are synthetic; what is timed begins with their pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx
import onnxruntime

from benchmarks.harness import Figure, benchmark, interleave, ratios, seconds
from convoy.contract.bundle import Bundle
from convoy.contract.field import FieldPixels, to_field
from convoy.contract.reading import WIDTH_NAME
from convoy.serving.client import Client
from convoy.serving.triton import TritonServer
from convoy.training.check_reader.building import load_handwriting
from convoy.training.check_reader.field_image import SyntheticFields

_REPOSITORY: Final = Path(__file__).resolve().parent.parent / "model_repository"
_N: Final = 256


@benchmark("reader_speed", packages=("onnxruntime-gpu", "tritonclient", "numpy"))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def command(rounds: int) -> Iterator[Figure]:
    """Time the shipped check reader in process and behind the server."""
    bundle = Bundle.open(_REPOSITORY / "check-reader" / "1")
    spec = bundle.manifest.image
    drawing = SyntheticFields(load_handwriting("digits", "test"), "chilean", 5)
    fields = [to_field(drawing.draw(index).image, spec) for index in range(_N)]
    width = sorted(field.pixels.shape[1] for field in fields)[_N // 2]
    alike = [field for field in fields if field.pixels.shape[1] == width][:64]
    one, many = _feed(alike[:1]), _feed((alike * 64)[:64])
    whole = onnxruntime.InferenceSession(str(bundle.model_path))
    network = onnxruntime.InferenceSession(_network(bundle.model_path))
    cases = {
        "whole, 1": lambda: seconds(lambda: whole.run(None, one), 8) / 1,
        "network, 1": lambda: seconds(lambda: network.run(None, _for(network, one)), 8) / 1,
        "whole, 64": lambda: seconds(lambda: whole.run(None, many)) / 64,
        "network, 64": lambda: seconds(lambda: network.run(None, _for(network, many))) / 64,
    }
    with TritonServer(_REPOSITORY, http_port=0, grpc_port=0, metrics_port=0) as server, Client(server.grpc_url) as client:
        client.read_amounts(fields)
        cases["served"] = lambda: seconds(lambda: client.read_amounts(fields)) / _N
        found = interleave(cases, rounds)
    for name, what in (("whole, 1", "one at a time"), ("whole, 64", "64 at a time")):
        yield Figure.of(f"in process, {what}", [1 / taken for taken in found[name]], "fields/s")
    yield Figure.of(f"served, {_N} fields of all widths", [1 / taken for taken in found["served"]], "fields/s")
    for size in (1, 64):
        shares = [1 - ratio for ratio in ratios(found[f"network, {size}"], found[f"whole, {size}"])]
        yield Figure.of(f"share of decoding, {size} at a time, {width} columns", shares, "of the time")


def _feed(fields: list[FieldPixels]) -> dict[str, Any]:
    return {
        "image": np.stack([field.pixels for field in fields]),
        WIDTH_NAME: np.array([[field.width_px] for field in fields], np.int64),
    }


def _for(session: onnxruntime.InferenceSession, feed: dict[str, Any]) -> dict[str, Any]:
    return {one.name: feed[one.name] for one in session.get_inputs()}


def _network(path: Path) -> bytes:
    """The file up to the scores of its network, the last convolution."""
    last = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"][-1]
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "network.onnx"
        onnx.utils.extract_model(str(path), str(cut), ["image", WIDTH_NAME], list(last.output), check_model=False)
        return cut.read_bytes()


if __name__ == "__main__":
    command()
