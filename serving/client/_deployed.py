"""The models that ``convoy deploy`` wrote: what their configurations say of them, and what a client remembers of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from convoy.contract.errors import (
    ClientError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client._call import ReadConfig
from convoy.serving.client._models import Key, Models
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps

if TYPE_CHECKING:
    from convoy.contract.manifest import ModelInterface, Task

T = TypeVar("T")

_ELSEWHERE: Final = "From Python, use client.infer(model_name, {input_name: array}); client.metadata(model_name) names its tensors."


@dataclass(frozen=True)
class Deployed:
    """What a client must know of a served model to give it images.

    Attributes:
        model_name: The model.
        interface: Labels, image rule, tensors.
        max_batch_size: The most images in one request.
        version: The version that this is said of; empty where the configuration names none, or several.
    """

    model_name: str
    interface: ModelInterface
    max_batch_size: int
    version: str = ""

    @classmethod
    def from_config(cls, model_name: str, config: dict[str, Any]) -> Deployed:
        """Read what ``convoy deploy`` wrote into the served configuration.

        Raises:
            UsageError: The model was not deployed by Convoy.
            InvalidResponseError: The configuration is damaged.
        """
        # Imported here: pydantic and PIL cost a light `from convoy import Client` 100 ms, and `infer` needs neither.
        from pydantic import ValidationError

        from convoy.contract.manifest import INTERFACE_PARAMETER, ModelInterface

        try:
            parameter = (config.get("parameters") or {}).get(INTERFACE_PARAMETER)
            text = None if parameter is None else parameter["string_value"]
            max_batch_size = int(config.get("max_batch_size") or 0)
            versions = list(((config.get("version_policy") or {}).get("specific") or {}).get("versions") or [])
            version = str(versions[0]) if len(versions) == 1 else ""
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InvalidResponseError(
                f"model {model_name!r}: its configuration has another form than Triton's: {error!r}"
            ) from error
        if text is None:
            raise UsageError(
                f"model {model_name!r} cannot be used with classify or read_amount: its configuration has no parameter "
                f"{INTERFACE_PARAMETER!r} with labels and image size, so `convoy deploy` did not write it. {_ELSEWHERE}"
            )
        try:
            interface = ModelInterface.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise InvalidResponseError(
                f"model {model_name!r}: the parameter {INTERFACE_PARAMETER!r} of its configuration cannot be read; at {where}: "
                f"{first['msg']}. It was written by another version of Convoy: deploy the model again, or update this client."
            ) from error
        return cls(model_name, interface, max_batch_size, version)

    def must_do(self, task: Task) -> None:
        """Make sure that this model does what it is asked for.

        Raises:
            UsageError: It does something else, or takes no batches of images.
        """
        from convoy.contract import reading
        from convoy.contract.manifest import INPUT_NAME, PROBABILITIES_NAME

        name, reads = self.model_name, task == "amount-reading"
        method = "read_amount" if reads else "classify"
        if self.interface.task != task and reads:
            raise UsageError(
                f"model {name!r} cannot be used with read_amount: it tells {len(self.interface.labels)} classes apart. Use "
                f"client.classify({name!r}, images)."
            )
        if self.interface.task != task:
            raise UsageError(
                f"model {name!r} cannot be used with classify: it reads amounts. Use client.read_amount(image, "
                f"model_name={name!r}), or client.read_amounts for several."
            )
        takes = [(INPUT_NAME, "UINT8"), (reading.WIDTH_NAME, "INT64")] if reads else [(INPUT_NAME, "UINT8")]
        gives = reading.OUTPUT_NAMES if reads else (PROBABILITIES_NAME,)
        inputs = [(tensor.name, tensor.datatype) for tensor in self.interface.inputs]
        outputs = [tensor.name for tensor in self.interface.outputs]
        if inputs != takes or not set(gives) <= set(outputs) or self.max_batch_size < 1:
            raise UsageError(
                f"model {name!r} cannot be used with {method}: expected the input{'s' * (len(takes) > 1)} "
                f"{', '.join(map(str, takes))}, {'outputs' if len(gives) > 1 else 'an output'} {', '.join(map(repr, gives))} "
                f"and max_batch_size from 1, found {inputs}, {outputs} and {self.max_batch_size}. {_ELSEWHERE}"
            )


class Deployments:
    """What one client remembers of the models that it gives images. Safe under threads: entries are replaced whole.

    Args:
        endpoint: Where the server is, for messages.
        models: Has what many want to know at once asked once.
    """

    def __init__(self, endpoint: object, models: Models) -> None:
        self._endpoint = endpoint
        self._models = models
        self._known: dict[Key, tuple[Deployed, str]] = {}  # with its version; "" where none has answered or is named

    def of(self, talk: Talk, key: Key) -> Steps[Deployed]:
        """A model as it is remembered; asked once where it is not."""
        remembered = self._known.get(key)
        if remembered is not None:
            return remembered[0]

        def known() -> Deployed | None:
            entry = self._known.get(key)
            return entry[0] if entry else None

        return (yield from self._models.flights.share(talk, ("deployed", key), known, lambda: self.look_up(talk, key)))

    def look_up(self, talk: Talk, key: Key) -> Steps[Deployed]:
        """A model as the server has it now.

        Raises:
            UsageError: The model was not deployed by Convoy.
            ClientError: The call failed.
        """
        self._known.pop(key, None)
        config = yield from talk.ask(ReadConfig(*key))
        try:
            deployed = Deployed.from_config(key[0], config)
        except (UsageError, ClientError) as error:
            raise type(error)(f"{self._endpoint}: {error}") from error
        self._known[key] = (deployed, deployed.version)
        return deployed

    def answered(self, talk: Talk, key: Key, deployed: Deployed, version: str) -> Steps[Deployed]:
        """A version has answered: the model as that version has it.

        Args:
            talk: The call.
            key: The model.
            deployed: What it was when it was asked.
            version: Who answered.
        """
        known, seen = self._known.get(key, (deployed, deployed.version))
        if version in ("", seen):
            return known  # by now, which may be later than when it was asked
        if version == deployed.version:
            return deployed  # the answer was under way while the model was replaced
        if seen:  # another version answers than the one that was looked up: its labels and its threshold are what counts
            known = yield from self.look_up(talk, key)
        if not known.version:  # else it is known by its own
            self._known[key] = (known, version)
        return known

    def keep_up(self, talk: Talk, key: Key, deployed: Deployed, rows: int, ask: Callable[[Deployed], Steps[T]]) -> Steps[T]:
        """Ask a model, and once more where it turns out to be another by now.

        Args:
            talk: The call.
            key: The model.
            deployed: What it was when the call began.
            rows: The images in the largest request that ``ask`` may send.
            ask: Has a model's answer.
        """
        deployed = self._known.get(key, (deployed, ""))[0]  # another version may have answered since
        try:
            return (yield from ask(deployed))
        except (InvalidRequestError, InvalidResponseError) as error:
            # The model may have been replaced by one with other labels or another image since it was looked up.
            renewed = yield from self.look_up(talk, key)
            if renewed.interface == deployed.interface:
                raise
            renewed.must_do(deployed.interface.task)
            if rows > renewed.max_batch_size:
                raise InvalidRequestError(f"{error} The model's configuration changed during the call: call again.") from error
            return (yield from ask(renewed))
        except (ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._known.pop(key, None)
            raise
