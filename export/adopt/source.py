"""A foreign ONNX file as the source of expected answers: at its own border, by other means than the ones under test."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.errors import ExportError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import LOGITS_NAME, PROBABILITIES_NAME
from convoy.export.adopt.border import InputBorder
from convoy.export.adopt.decision import TINY, OutputBorder
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.preprocess import Preprocess
from convoy.export.adopt.running import open_plain, run_in_batches, with_outputs
from convoy.export.adopt.sandbox import run_contained
from convoy.export.adopt.widening import first_disagreement, lacks, run_wide
from convoy.export.gate.source import Truth

_MAX_CALL_BYTES: Final = 256 << 20
_LIMITS: Final = dataclasses.replace(Limits(), deadline_s=1800.0, cpu_s=3600)
DEFAULT_BUDGET_S: Final = 60.0


@dataclass(frozen=True)
class OnnxSource:
    """Answers of a foreign file, for comparison.

    Preprocessing is computed here in numpy, apart from the nodes that the served file has for it, so that a fault in those shows.

    Attributes:
        title: Its name in reports.
        model: The file as it came, contained.
        border: Its input.
        output: Its decision.
        preprocess: What it expects of its pixels.
        image: What the served file takes.
        n_classes: K.
        batch_size: The one batch size at which the file runs; None where it takes any.
        alone: Each image fills such a batch by itself, as the served file does it where the batch could not be made free.
        budget_s: Seconds after which the float64 evaluation begins no further batch.
    """

    title: str
    model: bytes = dataclasses.field(repr=False)
    border: InputBorder
    output: OutputBorder
    preprocess: Preprocess
    image: ImageSpec
    n_classes: int
    batch_size: int | None = None
    alone: bool = False
    budget_s: float = DEFAULT_BUDGET_S

    @property
    def kind(self) -> Literal["pytorch", "onnx"]:
        """Somebody's ONNX file."""
        return "onnx"

    def float32(self, images: npt.NDArray[np.uint8], batch_size: int) -> dict[str, npt.NDArray[np.float32]]:
        """The file's answers in ONNX Runtime without graph optimisation, at its own border.

        Args:
            images: uint8, (n, H, W, C).
            batch_size: Images a call, where the file does not fix that.

        Returns:
            ``logits`` and ``probabilities``: float32, (n, K).

        Raises:
            ExportError: ONNX Runtime fails, or crashes in its process.
        """
        parts = []
        n_a_call = self._n_a_call(batch_size)
        for start in range(0, len(images), n_a_call):
            feed = prepare(images[start : start + n_a_call], self.border, self.preprocess)
            answers = run_contained(
                f"{__name__}:answer_task", self._payload(feed.astype(self.border.dtype), batch_size), limits=_LIMITS
            )
            parts.append(self.outputs(self._named(answers), np.float32))
        return {name: np.concatenate([part[name] for part in parts]) for name in (LOGITS_NAME, PROBABILITIES_NAME)}

    def float64(self, images: npt.NDArray[np.uint8], batch_size: int) -> Truth:
        """The file's answers with every float tensor widened, in the ONNX reference evaluator, for as many images as time allows.

        Args:
            images: uint8, (n, H, W, C).
            batch_size: Not used: one image a call (or what the file fixes), so that time is measured often.

        Returns:
            The truth. Where the evaluator lacks an operator, fails, crashes or runs out of memory, that is said as uncovered.
        """
        del batch_size
        deadline = time.monotonic() + self.budget_s
        parts: list[dict[str, npt.NDArray[np.float64]]] = []
        n = 0
        uncovered: tuple[str, ...] = ()
        while n < len(images) and not uncovered and (not parts or time.monotonic() < deadline):
            part, uncovered = self._truth(images[n : n + self._n_a_call(1)], max(0.0, deadline - time.monotonic()))
            if part:
                parts.append(part)
                n += len(part[LOGITS_NAME])
        if 0 < n < len(images):
            uncovered = (*uncovered, f"{len(images) - n} of {len(images)} images: the {self.budget_s:g} s for float64 were over")
        outputs = (
            {name: np.concatenate([part[name] for part in parts]) for name in (LOGITS_NAME, PROBABILITIES_NAME)} if parts else {}
        )
        return Truth(outputs, n, uncovered)

    def _truth(self, images: npt.NDArray[np.uint8], budget_s: float) -> tuple[dict[str, npt.NDArray[np.float64]], tuple[str, ...]]:
        feed = prepare(images, self.border, self.preprocess)
        feed = feed if self.border.dtype.startswith("float") else feed.astype(self.border.dtype)
        limits = dataclasses.replace(_LIMITS, deadline_s=_LIMITS.deadline_s + budget_s)
        try:
            answers = run_contained(f"{__name__}:truth_task", {**self._payload(feed, 1), "budget_s": budget_s}, limits=limits)
        except ExportError as error:  # out of memory or time, a crash: no truth, but the float32 answers stand
            return {}, (f"the ONNX reference evaluator: {error}",)
        uncovered = tuple(str(entry) for entry in _list(answers["uncovered"]))
        return (self.outputs(self._named(answers), np.float64) if _list(answers["computed"]) else {}), uncovered

    def _n_a_call(self, batch_size: int) -> int:
        """How many images go to the contained process at a time: whole batches."""
        size = self.batch_size or batch_size
        n_batches = max(1, _MAX_CALL_BYTES // (8 * int(np.prod(self.border.dims)) * size))
        return n_batches if self.alone else n_batches * size

    def _named(self, answers: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        return {name: self.own_rows(np.asarray(answers[f"output {i}"])) for i, name in enumerate(self.values())}

    def filled(self, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What goes in for each image: itself, or a whole batch of it where ``alone``."""
        return np.repeat(feed, self.batch_size or 1, axis=0) if self.alone else feed

    def own_rows(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rows of the images, of what came out for ``filled``."""
        return rows[:: self.batch_size or 1] if self.alone else rows

    def _payload(self, feed: npt.NDArray[Any], batch_size: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "input": self.border.name,
            "feed": self.filled(feed),
            "outputs": self.values(),
            "batch_size": self.batch_size or batch_size,
            "fixed": self.batch_size is not None,
            "has_batch_axis": self.border.has_batch_axis,
        }

    def values(self) -> list[str]:
        """The values of the foreign graph that hold the answers."""
        return list(dict.fromkeys(name for name in (self.output.value, self.output.probabilities) if name))

    def outputs(self, rows: Mapping[str, npt.NDArray[Any]], dtype: type[np.floating[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Logits and probabilities from what the foreign graph's values hold.

        Args:
            rows: By value, (n, K).
            dtype: Of the result.

        Raises:
            ExportError: A value holds something else.
        """
        for name, value in rows.items():
            if value.ndim != 2 or value.shape[1] != self.n_classes:
                raise ExportError(f"value {name!r}: expected {self.n_classes} numbers an image, found {list(value.shape)}.")
        found = rows[self.output.value]
        wide = found.astype(np.float64)
        with np.errstate(all="ignore"):  # what is not finite is for the gate to find
            logits = np.log(wide + TINY) if self.output.form == "probabilities" else wide
            own = rows.get(self.output.probabilities or "")
            probabilities = softmax(logits) if own is None else own.astype(np.float64)
        return {LOGITS_NAME: logits.astype(dtype), PROBABILITIES_NAME: probabilities.astype(dtype)}


def prepare(images: npt.NDArray[np.uint8], border: InputBorder, preprocess: Preprocess) -> npt.NDArray[np.float64]:
    """What the network expects, from raw pixels, in float64.

    Args:
        images: uint8, (n, H, W, C).
        border: The network's input.
        preprocess: What it expects.

    Returns:
        Of shape (n, *border.dims).
    """
    mean, std = preprocess.per_channel(images.shape[3])
    planes = []
    order = range(images.shape[3] - 1, -1, -1) if preprocess.color == "bgr" else range(images.shape[3])
    for position, channel in enumerate(order):
        pixels = images[..., channel].astype(np.float64)  # (n, H, W)
        planes.append((pixels * preprocess.scale - mean[position]) / std[position])
    planes = planes * (border.channels // len(planes))  # grey images for a network of three channels
    stacked = np.stack(planes, axis=1 if border.channels_first else -1)
    return np.ascontiguousarray(stacked).reshape(len(images), *border.dims)


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities of rows of logits, (n, K)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result


def answer_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """``OnnxSource.float32`` in a contained process."""
    outputs = _list(payload["outputs"])
    session = open_plain(with_outputs(_load(payload["model"]), outputs))
    found = run_in_batches(
        session, payload["input"], payload["feed"], outputs, payload["batch_size"], fixed=payload["fixed"],
        has_batch_axis=payload["has_batch_axis"],
    )  # fmt: skip
    return {f"output {i}": found[name] for i, name in enumerate(outputs)}


def truth_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """``OnnxSource.float64`` in a contained process."""
    outputs = _list(payload["outputs"])
    model, name, feed = _load(payload["model"]), payload["input"], payload["feed"]
    with_axis = payload["has_batch_axis"]
    # Two readings of one operator, the evaluator's and ONNX Runtime's, give no truth: that is said, with the node.
    rows = feed[: payload["batch_size"]] if payload["fixed"] else feed[:1]
    if not lacks(model) and (node := first_disagreement(model, name, rows if with_axis else rows[0])):
        reason = f"{node}: the ONNX reference evaluator and ONNX Runtime disagree there, so there is no truth to compare with"
        return {"uncovered": [reason], "computed": []}
    answers = run_wide(
        model,
        name,
        feed,
        outputs,
        payload["batch_size"],
        fixed=payload["fixed"],
        has_batch_axis=with_axis,
        budget_s=payload["budget_s"],
    )
    found = {f"output {i}": answers.outputs[value] for i, value in enumerate(outputs) if value in answers.outputs}
    return {**found, "uncovered": list(answers.uncovered), "computed": list(found)}


def _load(model: object) -> onnx.ModelProto:
    if not isinstance(model, bytes):
        raise ExportError(f"expected an ONNX file's bytes, found {type(model).__name__}.")
    return onnx.load_model_from_string(model)


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []
