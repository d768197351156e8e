"""``TritonPythonModel``: what Triton's backend process calls."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from convoy.contract.errors import ConvoyError, InvalidRequestError
from convoy.serving.triton.backend import border
from convoy.serving.triton.backend.batch import Array, run_alone, run_joined
from convoy.serving.triton.backend.options import Options
from convoy.serving.triton.backend.scalar import with_scalars
from convoy.serving.triton.backend.session import model_path, open_session, reason_of

_INVALID = ("InvalidArgument", "InvalidRequestError", "UnicodeDecodeError")
"""Errors that are the request's fault, by name: ONNX Runtime keeps its classes in a private module."""


class TritonPythonModel:
    """One instance of a model: an ONNX Runtime session in a process of its own."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Complete a configuration from the ONNX file, where it leaves something out.

        Args:
            config: Triton's ``ModelConfig`` object.

        Raises:
            TritonModelException: The file cannot be read, or says otherwise than the configuration.
        """
        said = config.as_dict()
        if border.is_complete(said):
            return config
        try:
            options = Options.read(said)
            path = model_path(Path(pb.get_model_dir()), options.model_filename)
            border.complete(config, border.Border.of(open_session(path, Options(intra_op_threads=1)).session))
        except (ConvoyError, ValueError) as error:
            raise pb.TritonModelException(str(error)) from error
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the ONNX file.

        Args:
            args: Triton's ``model_config`` (JSON), ``model_repository`` (the model's folder), ``model_version``,
                ``model_instance_kind``, ``model_instance_device_id``, ``model_instance_name``.

        Raises:
            TritonModelException: The file is missing or damaged, or it and the configuration do not belong together.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"])
        try:
            options = Options.read(
                config, kind=args["model_instance_kind"], device_id=args["model_instance_device_id"], folder=folder
            )
            opened = open_session(model_path(folder / args["model_version"], options.model_filename), options)
            found = border.Border.of(opened.session)
            border.check(found, config)
        except ConvoyError as error:
            raise pb.TritonModelException(str(error)) from error
        name = args["model_instance_name"]
        for warning in (*options.warnings, *opened.warnings):
            pb.Logger.log_warn(f"{name}: {warning}")
        threads = opened.intra_op_threads or "all"
        pb.Logger.log_info(f"{name}: {opened.provider}, {threads} intra-op thread{'' if threads == 1 else 's'}")
        for note in opened.notes:
            pb.Logger.log_info(f"{name}: {note}")
        self._session = with_scalars(opened.session, found, config)
        self._run_options = _run_options(opened.run_entries)
        self._batched = config["max_batch_size"] > 0
        tensors = (*found.inputs, *found.optional)
        self._strings = frozenset(tensor.name for tensor in tensors if tensor.datatype == "TYPE_STRING")
        names = border.input_names(config)
        self._only_input = names[0] if len(names) == 1 and not found.optional else ""
        self._every = tuple(entry["name"] for entry in config["output"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests.

        Args:
            requests: Triton's requests, of equal shapes but for the batch axis.

        Returns:
            One response a request, in order.
        """
        if len(requests) == 1 or not self._batched:
            return [self._respond(request) for request in requests]
        try:
            wanted = [self._names(request) for request in requests]
            outputs, ends = run_joined(self._columns(requests), wanted, self._run, self._every)
        except Exception:  # noqa: BLE001 - one request spoiled the run, or its reading: each shall have its own answer or error
            return [self._respond(request) for request in requests]
        tensor, response = pb.Tensor, pb.InferenceResponse
        responses = []
        start = 0
        for end, names in zip(ends, wanted, strict=True):
            responses.append(response([tensor(name, output[start:end]) for name, output in outputs if name in names]))
            start = end
        return responses

    def finalize(self) -> None:
        """Let go of the session."""
        del self._session

    def _run(self, names: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        outputs: list[Array] = self._session.run(names, inputs, self._run_options)
        return outputs

    def _respond(self, request: Any) -> Any:
        """The response to one request that is run by itself."""
        try:
            inputs = {name: arrays[0] for name, arrays in self._columns([request]).items()}
            outputs = run_alone(inputs, self._names(request), self._run, self._every, batched=self._batched)
            return pb.InferenceResponse([pb.Tensor(name, output) for name, output in outputs])
        except Exception as error:  # noqa: BLE001 - whatever is raised is this caller's answer
            return _failure(error)

    def _names(self, request: Any) -> Collection[str]:
        """The outputs that a request wants."""
        names: Collection[str] = request.requested_output_names()
        return names or self._every

    def _columns(self, requests: list[Any]) -> dict[str, list[Array]]:
        """By input, one array a request."""
        if self._only_input:  # Triton has checked its name
            columns = {self._only_input: [request.inputs()[0].as_numpy() for request in requests]}
        else:
            columns = {}
            for request in requests:
                for tensor in request.inputs():  # optional ones may be missing
                    columns.setdefault(tensor.name(), []).append(tensor.as_numpy())
        for name in self._strings & columns.keys():
            columns[name] = [decode(name, array) for array in columns[name]]
        return columns


def decode(name: str, array: Array) -> Array:
    """Byte strings as text, which is what ONNX Runtime's Python interface takes.

    Raises:
        InvalidRequestError: A string is not UTF-8.
    """
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"input '{name}': expected UTF-8 strings: {error}") from error
    decoded = np.empty(array.size, np.object_)
    decoded[:] = texts
    return decoded.reshape(array.shape)


def _run_options(entries: Mapping[str, str]) -> Any:
    if not entries:
        return None
    import onnxruntime

    run_options = onnxruntime.RunOptions()
    for key, value in entries.items():
        run_options.add_run_config_entry(key, value)
    return run_options


def _failure(error: Exception) -> Any:
    kind = pb.TritonError.INVALID_ARG if type(error).__name__ in _INVALID else pb.TritonError.INTERNAL
    return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(reason_of(error), kind))
