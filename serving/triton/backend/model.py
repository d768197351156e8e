"""``TritonPythonModel``: what Triton's backend process calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from convoy.contract.errors import ConvoyError, InvalidRequestError
from convoy.serving.triton.backend import border
from convoy.serving.triton.backend.batch import Array, Request, answer_all
from convoy.serving.triton.backend.options import Options
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
        self._session = opened.session
        self._run_options = _run_options(options)
        self._batched = config["max_batch_size"] > 0
        self._strings = frozenset(tensor.name for tensor in found.inputs if tensor.datatype == "TYPE_STRING")
        self._only_input = found.inputs[0].name if len(found.inputs) == 1 else ""
        self._all_outputs = tuple(entry["name"] for entry in config["output"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests.

        Args:
            requests: Triton's requests, of equal shapes but for the batch axis.

        Returns:
            One response a request, in order.
        """
        asked: list[Request] = []
        at: list[int] = []
        responses: list[Any] = [None] * len(requests)
        for i, request in enumerate(requests):
            try:
                asked.append(Request(self._inputs_of(request), self._outputs_of(request)))
                at.append(i)
            except Exception as error:  # noqa: BLE001 - a request that cannot be read fails alone
                responses[i] = _failure(error)
        tensor, response = pb.Tensor, pb.InferenceResponse
        for i, request, answer in zip(at, asked, answer_all(asked, self._run, batched=self._batched), strict=True):
            if isinstance(answer, Exception):
                responses[i] = _failure(answer)
            else:
                responses[i] = response([tensor(name, array) for name, array in zip(request.outputs, answer, strict=True)])
        return responses

    def finalize(self) -> None:
        """Let go of the session."""
        del self._session

    def _run(self, names: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        outputs: list[Array] = self._session.run(names, inputs, self._run_options)
        return outputs

    def _inputs_of(self, request: Any) -> dict[str, Array]:
        tensors = request.inputs()
        if self._only_input and not self._strings:
            return {self._only_input: tensors[0].as_numpy()}  # Triton has checked the name
        arrays = {tensor.name(): tensor.as_numpy() for tensor in tensors}
        for name in self._strings:
            arrays[name] = decode(name, arrays[name])
        return arrays

    def _outputs_of(self, request: Any) -> tuple[str, ...]:
        return tuple(request.requested_output_names()) or self._all_outputs


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


def _run_options(options: Options) -> Any:
    if not options.run_entries:
        return None
    import onnxruntime

    run_options = onnxruntime.RunOptions()
    for key, value in options.run_entries.items():
        run_options.add_run_config_entry(key, value)
    return run_options


def _failure(error: Exception) -> Any:
    kind = pb.TritonError.INVALID_ARG if type(error).__name__ in _INVALID else pb.TritonError.INTERNAL
    return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(reason_of(error), kind))
