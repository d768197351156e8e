"""Scalars: tensors without any axis, which the wire does not have and the C++ backend takes as dims of 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convoy.serving.triton.backend.border import Border, dims_of


class ScalarSession:
    """A session whose scalars are met by tensors of one element.

    It runs as ONNX Runtime's session does, for models that have scalars; for the others there is no need to stand in between.
    """

    def __init__(self, session: Any, inputs: frozenset[str], outputs: Mapping[str, tuple[int, ...]]) -> None:
        """A session around another.

        Args:
            session: ONNX Runtime's session.
            inputs: The names of its scalar inputs.
            outputs: By scalar output, the shape that callers see.
        """
        self._session = session
        self._inputs = inputs
        self._outputs = outputs

    def run(self, names: Sequence[str], inputs: Mapping[str, Any], run_options: Any = None) -> list[Any]:
        """Run the model.

        Args:
            names: The outputs that are wanted.
            inputs: The arrays by name; those of scalars have one element.
            run_options: ONNX Runtime's run options.

        Returns:
            The outputs in the order of ``names``; scalars as arrays of one element.
        """
        fitted = {name: array.reshape(()) if name in self._inputs else array for name, array in inputs.items()}
        found = self._session.run(names, fitted, run_options)
        return [
            array.reshape(self._outputs[name]) if name in self._outputs and array.ndim == 0 else array
            for name, array in zip(names, found, strict=True)
        ]


def with_scalars(session: Any, border: Border, config: Mapping[str, Any]) -> Any:
    """A session that takes what Triton passes on: the session itself, or one around it where the file has scalars.

    Args:
        session: ONNX Runtime's session.
        border: Its border.
        config: The model's configuration, held against the border.
    """
    inputs = frozenset(tensor.name for tensor in (*border.inputs, *border.optional) if not tensor.shape)
    dims = {entry["name"]: dims_of(entry) for entry in config["output"]}
    outputs = {tensor.name: dims[tensor.name] for tensor in border.outputs if not tensor.shape and tensor.name in dims}
    return ScalarSession(session, inputs, outputs) if inputs or outputs else session
