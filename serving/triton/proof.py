"""The proof that a served model works: an inference. Triton calls a model ready whose process has died."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convoy.contract.bundle import MANIFEST_FILE, Bundle
from convoy.contract.errors import InvalidRequestError, ServerError, UsageError

if TYPE_CHECKING:
    from convoy.serving.client import Client

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "FP16": np.float16, "BF16": np.float32, "FP32": np.float32, "FP64": np.float64, "BYTES": np.object_,
    **{f"{sign}INT{bits}": np.dtype(f"{'u' if sign else ''}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_ITS_OWN = "its test set"


@dataclass(frozen=True)
class Proof:
    """What an inference showed.

    Attributes:
        model_name: The model.
        model_version: The version that answered.
        n_goldens: How many golden inputs were replayed and agreed; 0 where the version has none and zeros were sent.
        test_accuracy: The served model's accuracy, measured at export, as a fraction; None where nobody knows.
        test_split: On what ("mnist test").
    """

    model_name: str
    model_version: str
    n_goldens: int
    test_accuracy: float | None
    test_split: str = _ITS_OWN


def prove(client: Client, repository: Path, model_name: str, timeout_s: float = 60.0) -> Proof:
    """Replay a served model's golden inputs; send zeros where it has none.

    Args:
        client: A client of the server.
        repository: The repository that the server serves.
        model_name: The model.
        timeout_s: How long the first answer may take.

    Raises:
        ServerError: The server's answers are not PyTorch's.
        ClientError: The server did not answer.
        ContractError: The version's files are damaged.
    """
    from convoy.serving.probe import replay

    version = ask(client, model_name, timeout_s=timeout_s)
    folder = repository / model_name / version
    if not (folder / MANIFEST_FILE).is_file():
        return Proof(model_name, version, 0, None)
    bundle = Bundle.open(folder)
    for output, agreement in replay(client, bundle, model_name, version).items():
        if not agreement.passed:
            raise ServerError(
                f"{model_name} version {version}: the served model does not answer as the trained one did: {output}: "
                f"{agreement.n_outside + agreement.n_nonfinite} values out of tolerance, "
                f"{agreement.n_top1_differs} of {agreement.n} decisions differ, largest difference {agreement.max_abs_diff:.3g}."
            )
    return Proof(model_name, version, len(bundle.goldens()), *_test_accuracy(bundle))


def preload() -> None:
    """Import what a proof needs, so that it does not do so while somebody waits for it."""
    import convoy.serving.probe  # noqa: F401


def _test_accuracy(bundle: Bundle) -> tuple[float | None, str]:
    """With the split that it is of: as the gate measured it on the ONNX file; else as training measured it."""
    if bundle.report.accuracy is not None:
        return bundle.report.accuracy.onnxruntime, bundle.report.accuracy.split
    training = bundle.manifest.training
    return None if training is None else 1 - training.test_top1_error, _ITS_OWN


def ask(client: Client, model_name: str, timeout_s: float) -> str:
    """Ask a model about one row of zeros (or empty strings): does its process answer?

    A model may refuse zeros; it has answered, then.

    Returns:
        The version that answered.

    Raises:
        ClientError: The server did not answer, or failed.
    """
    metadata = client.metadata(model_name, timeout_s=timeout_s)
    width_px = 1
    if any(extent < 0 for tensor in metadata.inputs for extent in tensor.shape[1:]):
        width_px = _narrowest(client, model_name, timeout_s)
    inputs = {tensor.name: _zeros(tensor.datatype, tensor.shape, width_px) for tensor in metadata.inputs}
    try:
        return client.infer(model_name, inputs, timeout_s=timeout_s).model_version
    except InvalidRequestError:
        return metadata.versions[-1] if metadata.versions else ""


def _narrowest(client: Client, model_name: str, timeout_s: float) -> int:
    """The narrowest image that a model of Convoy's takes; 1 of another model, whose free axes may mean anything."""
    try:
        return min(client.interface(model_name, timeout_s=timeout_s).image.widths_px, default=1)
    except UsageError:
        return 1


def _zeros(datatype: str, shape: tuple[int, ...], free: int) -> npt.NDArray[Any]:
    """One row of zeros; axes of any size but the first, which is the batch, get the size ``free``."""
    extents = tuple((free if axis else 1) if extent < 0 else extent for axis, extent in enumerate(shape))
    if datatype == "BYTES":
        return np.full(extents, b"", dtype=np.object_)
    return np.zeros(extents, dtype=_DTYPES[datatype])
