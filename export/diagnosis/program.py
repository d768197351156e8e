"""A PyTorch program run operator by operator: in float64 for the truth, in float32 for what rounding does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.export.graph_signature import InputKind

from convoy.contract.errors import ExportError
from convoy.export.diagnosis.difference import max_abs_diff
from convoy.export.diagnosis.structure import module_path
from convoy.export.gate.reference import in_float64


@dataclass(frozen=True)
class Step:
    """What one operator of the program makes.

    Attributes:
        name: The value's name, the same as in the ONNX file that was translated from the program.
        value: In float64 where it is floating, else as it is; whole numbers (sizes) as int64 of no axes.
        own_error: The largest difference between float32 and float64 where every value that the ONNX file shares with the program
            is true on entry: what float32 does to the operators since then.
        error: The largest difference between a float32 run of the whole program and ``value``.
        module: The path of the module that the operator stands in.
    """

    name: str
    value: npt.NDArray[Any]
    own_error: float
    error: float
    module: str


def run_program(program: torch.export.ExportedProgram, images: npt.NDArray[np.uint8], shared: frozenset[str]) -> Iterator[Step]:
    """Run an exported program on a batch of images, three times side by side.

    Once in float64; once in float32; and once in float32 from true inputs, where each value in ``shared``, once it is made, is
    replaced by its float64 value. Every value is let go after its last use.

    Args:
        program: Takes uint8 (N, H, W, C).
        images: uint8, shape (n, H, W, C).
        shared: The names of the values that the ONNX file has too.

    Raises:
        ExportError: The program cannot be run.
    """
    graph = program.graph_module.graph
    env = dict(zip((node for node in graph.nodes if node.op == "placeholder"), _arguments(program, images), strict=True))
    last_use = {used: node for node in graph.nodes for used in node.all_input_nodes}
    for node in graph.nodes:
        if node.op not in ("call_function", "get_attr"):
            continue
        try:
            lanes = _run(program, node, env)
        except Exception as error:  # whatever a kernel raises
            raise ExportError(
                f"PyTorch's program cannot be run by itself; it fails at {node.name} ({node.target}): {error}"
            ) from error
        step = _step(node, lanes)
        if step is not None:
            yield step
        env[node] = (lanes[0], lanes[1], _narrow(lanes[0]) if node.name in shared else lanes[2])
        for used in node.all_input_nodes:
            if last_use[used] is node:
                env.pop(used, None)


def _arguments(program: torch.export.ExportedProgram, images: npt.NDArray[np.uint8]) -> Iterator[tuple[Any, Any, Any]]:
    """For each placeholder its three lanes: weights in float64 and float32, the images as they are."""
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            value: Any = torch.from_numpy(np.ascontiguousarray(images))
        elif spec.target is not None and spec.target in program.state_dict:
            value = program.state_dict[spec.target].detach()
        elif spec.target is not None and spec.target in program.constants:
            value = program.constants[spec.target]
        else:
            raise ExportError(f"PyTorch's program takes {spec.arg}, which is neither an image nor a weight.")
        yield _widen(value), value, value


def _run(program: torch.export.ExportedProgram, node: fx.Node, env: dict[fx.Node, tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    if node.op == "get_attr":
        value = getattr(program.graph_module, str(node.target))
        return _widen(value), value, value
    lanes = []
    for lane in range(3):
        own = {used: env[used][lane] for used in node.all_input_nodes}
        args, kwargs = _filled((node.args, node.kwargs), own)
        if node.target in (torch.ops.aten.as_strided.default, torch.ops.aten.view.default):
            args = (_strided_like(args[0], node.args[0]), *args[1:])
        assert callable(node.target)
        with torch.no_grad():
            if lane == 0:
                with in_float64():
                    lanes.append(node.target(*args, **kwargs))
            else:
                lanes.append(node.target(*args, **kwargs))
    return lanes[0], lanes[1], lanes[2]


def _filled(arguments: Any, values: dict[fx.Node, Any]) -> Any:
    """An operator's arguments with the values in place of the nodes that stand for them."""
    return fx.node.map_arg(arguments, values.__getitem__)


def _strided_like(tensor: torch.Tensor, node: Any) -> torch.Tensor:
    """``tensor`` with its axes laid out in memory as the exporter saw them: the program names strides, kernels choose them."""
    seen = node.meta["val"]
    order = sorted(range(seen.ndim), key=lambda axis: (-int(seen.stride(axis)), axis))
    inverse = [order.index(axis) for axis in range(seen.ndim)]
    return tensor.permute(order).contiguous().permute(inverse)


def _step(node: fx.Node, lanes: tuple[Any, Any, Any]) -> Step | None:
    wide, narrow, own = (_array(lane) for lane in lanes)
    if wide is None or narrow is None or own is None:
        return None  # several values at once: the getitem nodes that follow name each
    return Step(node.name, wide, max_abs_diff(wide, own), max_abs_diff(wide, narrow), _module(node))


def _array(value: Any) -> npt.NDArray[Any] | None:
    if isinstance(value, torch.Tensor):
        array: npt.NDArray[Any] = value.detach().numpy()
        return array
    if isinstance(value, (bool, int)):
        return np.asarray(value, dtype=np.int64)
    return np.asarray(value, dtype=np.float64) if isinstance(value, float) else None


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _narrow(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype is torch.float64 else value


def _module(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    return module_path(paths[-1]) if paths else ""
