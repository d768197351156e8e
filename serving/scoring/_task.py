"""What depends on what a model does: who scores with it, what its rows are, and which options make sense."""

from __future__ import annotations

from convoy.contract.errors import UsageError
from convoy.contract.manifest import ModelInterface
from convoy.serving.scoring._amounts import AMOUNTS_SCHEMA_VERSION, AmountRowMaker, AmountScorer, AmountStatistics
from convoy.serving.scoring._backend import Backend
from convoy.serving.scoring._options import Options
from convoy.serving.scoring._scorer import Scorer
from convoy.serving.scoring._statistics import Statistics
from convoy.serving.scoring._table import SCHEMA_VERSION, RowMaker
from convoy.serving.scoring.source import Source


def make_scorer(backend: Backend, source: Source, top_k: int, run: str, box: tuple[int, int, int, int] | None = None) -> Scorer:
    """Who scores with a model, and makes its rows.

    Args:
        backend: The model.
        source: What is scored.
        top_k: How many candidates a row lists.
        run: The identity of the run.
        box: Where the field lies on each image, of models that read amounts.
    """
    about = (backend.interface.labels, top_k, backend.model_name, backend.version, backend.digest, run)
    if _reads(backend.interface):
        return AmountScorer(backend, source, AmountRowMaker(*about), box)
    return Scorer(backend, source, RowMaker(*about))


def make_statistics(interface: ModelInterface) -> Statistics:
    """What a model's data set says as a whole, of no rows yet."""
    if interface.reading is None:
        return Statistics(interface.labels)
    accept = interface.reading.accept
    return AmountStatistics(threshold=None if accept is None else accept.threshold)


def table_version_of(interface: ModelInterface) -> str:
    """The version of the schema of a model's rows."""
    return AMOUNTS_SCHEMA_VERSION if _reads(interface) else SCHEMA_VERSION


def check_options(options: Options, interface: ModelInterface) -> None:
    """Make sure that what is asked for makes sense with what the model does.

    Raises:
        UsageError: It does not.
    """
    if not _reads(interface):
        if options.box is not None:
            n = len(interface.labels)
            raise UsageError(
                f"box (--box): it says where an amount lies, and {options.model_name!r} tells {n} classes apart: leave it out."
            )
        return
    if options.reference is not None:
        raise UsageError(
            "reference (--reference): it tells how often each class was the answer in an earlier run, and "
            f"{options.model_name!r} reads amounts, not classes: leave it out."
        )


def labels_fault(found: set[str], interface: ModelInterface) -> str:
    """Why no accuracy can be told of true labels, as what was expected instead; empty where it can.

    Args:
        found: Some of them.
        interface: The model's.
    """
    if _reads(interface):
        return "" if any(any(map(str.isdecimal, label)) for label in found) else "amounts, such as '1.234.-' or '1234'"
    return "" if found & set(interface.labels) else f"labels such as {sorted(interface.labels)[:5]}"


def _reads(interface: ModelInterface) -> bool:
    return interface.task == "amount-reading"
