"""Stored tensors: what each claims by its dims, held against the bytes that it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil, prod
from typing import Final

import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.bodies import Body, bodies, describe
from convoy.export.adopt.limits import Limits

_T: Final = onnx.TensorProto
_FIELDS: Final = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

# Datatype -> (bits of one element, the typed field that may hold it, entries of that field for one element).
_LAYOUT: Final[dict[int, tuple[int, str, int | Fraction]]] = {
    _T.FLOAT: (32, "float_data", 1), _T.DOUBLE: (64, "double_data", 1),
    _T.COMPLEX64: (64, "float_data", 2), _T.COMPLEX128: (128, "double_data", 2),
    _T.INT64: (64, "int64_data", 1), _T.UINT64: (64, "uint64_data", 1), _T.UINT32: (32, "uint64_data", 1),
    _T.INT32: (32, "int32_data", 1), _T.INT16: (16, "int32_data", 1), _T.UINT16: (16, "int32_data", 1),
    _T.INT8: (8, "int32_data", 1), _T.UINT8: (8, "int32_data", 1), _T.BOOL: (8, "int32_data", 1),
    _T.FLOAT16: (16, "int32_data", 1), _T.BFLOAT16: (16, "int32_data", 1),
    _T.FLOAT8E4M3FN: (8, "int32_data", 1), _T.FLOAT8E4M3FNUZ: (8, "int32_data", 1),
    _T.FLOAT8E5M2: (8, "int32_data", 1), _T.FLOAT8E5M2FNUZ: (8, "int32_data", 1),
    _T.UINT4: (4, "int32_data", Fraction(1, 2)), _T.INT4: (4, "int32_data", Fraction(1, 2)),
    _T.STRING: (0, "string_data", 1),
}  # fmt: skip


def stored_tensors(model: onnx.ModelProto, limits: Limits) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield every tensor that ``model`` stores, initialisers and attributes, with what messages call it."""
    for body in bodies(model, limits):
        yield from _initializers(body)
        for node in body.nodes:
            for attribute in node.attribute:
                owner = f"{attribute.name!r} of {describe(node)}"
                yield from _attribute_tensors(owner, attribute)
    for function in model.functions:
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(f"{attribute.name!r} of the local function {function.name!r}", attribute)


def _initializers(body: Body) -> Iterator[tuple[str, onnx.TensorProto]]:
    if isinstance(body.source, onnx.FunctionProto):
        return
    for tensor in body.source.initializer:
        yield f"the initialiser {tensor.name[:120]!r}", tensor
    for sparse in body.source.sparse_initializer:
        yield from _sparse_parts(f"the sparse initialiser {sparse.values.name[:120]!r}", sparse)


def _attribute_tensors(owner: str, attribute: onnx.AttributeProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    if attribute.HasField("t"):
        yield owner, attribute.t
    for tensor in attribute.tensors:
        yield owner, tensor
    if attribute.HasField("sparse_tensor"):
        yield from _sparse_parts(owner, attribute.sparse_tensor)
    for sparse in attribute.sparse_tensors:
        yield from _sparse_parts(owner, sparse)


def _sparse_parts(owner: str, sparse: onnx.SparseTensorProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield f"the values of {owner}", sparse.values
    yield f"the indices of {owner}", sparse.indices


def sparse_tensors(model: onnx.ModelProto, limits: Limits) -> Iterator[tuple[str, onnx.SparseTensorProto]]:
    """Yield every sparse tensor of ``model`` with what messages call it."""
    for body in bodies(model, limits):
        if isinstance(body.source, onnx.GraphProto):
            for sparse in body.source.sparse_initializer:
                yield f"the sparse initialiser {sparse.values.name[:120]!r}", sparse
        for node in body.nodes:
            for attribute in node.attribute:
                found = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
                for sparse in [*found, *attribute.sparse_tensors]:
                    yield f"{attribute.name!r} of {describe(node)}", sparse


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's bytes stand in another file."""
    return bool(tensor.data_location == _T.EXTERNAL)


def n_elements(owner: str, dims: Sequence[int], limits: Limits) -> int:
    """Return the elements of a tensor of ``dims``, as an exact integer.

    Raises:
        ExportError: Too many axes, or a negative one.
    """
    if len(dims) > limits.max_rank or any(dim < 0 for dim in dims):
        raise ExportError(
            f"{owner}: expected at most {limits.max_rank} axes of length 0 or more, found {list(dims[:8])}: the file is damaged."
        )
    return prod(dims)


def n_bytes(owner: str, tensor: onnx.TensorProto, limits: Limits) -> int:
    """Return how many bytes a tensor's dims claim; 0 for strings.

    Raises:
        ExportError: The datatype is unknown, or the dims are impossible.
    """
    if tensor.data_type not in _LAYOUT:
        raise ExportError(
            f"{owner}: expected a datatype of opset 21 or earlier, found number {tensor.data_type}: "
            "store it in a datatype that every target server knows."
        )
    bits = _LAYOUT[tensor.data_type][0]
    return (n_elements(owner, tensor.dims, limits) * bits + 7) // 8


def check_tensors(model: onnx.ModelProto, limits: Limits) -> None:
    """Check that each stored tensor has exactly the bytes that its dims claim, and that sparse ones stay small when dense.

    External tensors are checked for their claim alone: :func:`convoy.export.adopt.external_data.embed` reads their bytes.

    Raises:
        ExportError: A tensor claims more or fewer bytes than it has, mixes ways of storing, or grows beyond ``limits``.
    """
    for owner, tensor in stored_tensors(model, limits):
        _check_tensor(owner, tensor, limits)
    total = 0
    for owner, sparse in sparse_tensors(model, limits):
        total += _dense_bytes(owner, sparse, limits)
        if total > limits.max_constants_bytes:
            raise ExportError(
                f"expected sparse tensors of {limits.max_constants_bytes:,} bytes together when dense, found more at {owner}."
            )


def _check_tensor(owner: str, tensor: onnx.TensorProto, limits: Limits) -> None:
    claimed = n_bytes(owner, tensor, limits)
    if tensor.HasField("segment"):
        raise ExportError(f"{owner}: expected a whole tensor, found a segment of one: save the model with whole tensors.")
    filled = [name for name in _FIELDS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        filled.append("raw_data")
    if is_external(tensor):
        if filled or tensor.data_type == _T.STRING:
            raise ExportError(
                f"{owner}: expected external numbers alone, found {filled or 'strings'} beside them: save the model again."
            )
        return
    if tensor.external_data:
        raise ExportError(f"{owner}: names an external file, but says that its data are inside: save the model again.")
    elements = prod(tensor.dims)
    _, field, entries = _LAYOUT[tensor.data_type]
    if filled == ["raw_data"] and tensor.data_type != _T.STRING:
        found, expected, unit = len(tensor.raw_data), claimed, "bytes"
    elif not filled or filled == [field]:
        found, expected, unit = len(getattr(tensor, field)), ceil(elements * entries), "values"
    else:
        raise ExportError(
            f"{owner}: expected its data in raw_data or {field}, found them in {' and '.join(filled)}: save the model again."
        )
    if found != expected:
        raise ExportError(
            f"{owner}: expected {expected:,} {unit} for dims {list(tensor.dims)}, found {found:,}: the file is damaged or hostile."
        )


def _dense_bytes(owner: str, sparse: onnx.SparseTensorProto, limits: Limits) -> int:
    elements = n_elements(owner, sparse.dims, limits)
    dense = (elements * max(_LAYOUT[sparse.values.data_type][0], 8) + 7) // 8
    stored, axes = list(sparse.values.dims), len(sparse.dims)
    count = stored[0] if len(stored) == 1 else -1
    if sparse.indices.data_type != _T.INT64 or list(sparse.indices.dims) not in ([count], [count, axes]) or count > elements:
        raise ExportError(
            f"{owner}: expected values of dims [n] and int64 indices of dims [n] or [n, {axes}], found {stored} and "
            f"{list(sparse.indices.dims)}: the file is damaged."
        )
    if dense > limits.max_tensor_bytes:
        raise ExportError(
            f"{owner}: expected at most {limits.max_tensor_bytes:,} bytes when dense, found {dense:,} from {count} stored values: "
            "no server could hold it."
        )
    return dense
