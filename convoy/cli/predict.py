"""``convoy predict``: what is on these images?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json, stdout_console

if TYPE_CHECKING:
    from convoy.contract.image import ImageSpec, Pixels
    from convoy.serving.client import Prediction

DEFAULT_URL = "grpc://localhost:8001"

_MOST_NAMES = 20  # served models in a message
_BAR_WIDTH = 20  # characters for a probability of 1


def server_options(function: Any) -> Any:
    """Add ``--url``, ``--model-version`` and ``--timeout``: which server, which version, how long."""
    positive = click.FloatRange(min=0, min_open=True)
    for option in (
        click.option(
            "--timeout", "timeout_s", type=positive, default=30.0, show_default=True, help="Seconds to wait for an answer."
        ),
        click.option("--model-version", default="", metavar="VERSION", help="The version to ask.  [default: the server's choice]"),
        click.option("--url", default=DEFAULT_URL, show_default=True, help="The server: grpc://HOST:PORT or http://HOST:PORT."),
    ):
        function = option(function)
    return function


@contextmanager
def naming_the_served(url: str, timeout_s: float) -> Iterator[None]:
    """Add to the error of a model that the server does not have which ones it does have, where it tells."""
    from convoy.contract.errors import ClientError, ModelNotFoundError
    from convoy.serving.client import Client

    try:
        yield
    except ModelNotFoundError as error:
        try:
            with Client(url, timeout_s=min(timeout_s, 5)) as client:
                served = sorted((status.name, status.version) for status in client.models() if status.state == "READY")
        except ClientError:  # some servers do not tell; the first error is the one that counts
            raise error from None
        names = ", ".join(f"{name} (version {version})" for name, version in served[:_MOST_NAMES]) or "nothing"
        more = f" and {len(served) - _MOST_NAMES} more" if len(served) > _MOST_NAMES else ""
        raise ModelNotFoundError(f"{error} The server serves: {names}{more}.") from error


@click.command("predict")
@click.argument("model_name", metavar="MODEL")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--top-k", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="List the N likeliest classes."
)
@server_options
@json_option
def command(
    model_name: str, images: tuple[str, ...], top_k: int, url: str, model_version: str, timeout_s: float, as_json: bool
) -> None:
    """Classify each IMAGE with MODEL through a running server (`convoy serve` starts one).

    Images may have any size and any form that Pillow reads; the model's own size and labels come from the server. An image that
    cannot be read is reported while the others are answered; the exit status is 1 then.

    \b
      convoy predict lenet5 digit.png
      convoy predict lenet5 *.png --top-k 3 --url http://gpu-box:8000
    """  # noqa: D301  # the backspace is click's mark for lines to leave as they are
    from convoy.contract.errors import ImageError
    from convoy.serving.client import Client

    errors: dict[int, str] = {}
    with naming_the_served(url, timeout_s), Client(url, timeout_s=timeout_s) as client:
        spec = client.interface(model_name, model_version).image
        answers = client.classify(model_name, _readable(images, spec, errors), model_version=model_version, top_k=top_k)
    remaining = iter(answers)
    results = [(image, None if i in errors else next(remaining), errors.get(i)) for i, image in enumerate(images)]
    if as_json:
        print_json({"url": url, "model_name": model_name, "predictions": [_as_dict(*result) for result in results]})
    else:
        _print(results)
    if errors:
        raise ImageError(f"{len(errors)} of {len(images)} image{'s' * (len(images) > 1)} could not be read.")


def _readable(images: tuple[str, ...], spec: ImageSpec, errors: dict[int, str]) -> Iterator[Pixels]:
    """The model's pixels of each image that can be read; why the others cannot goes into ``errors``, by place."""
    from convoy.contract.errors import ImageError
    from convoy.contract.image import to_pixels

    for i, image in enumerate(images):
        try:
            yield to_pixels(image, spec)
        except ImageError as error:
            errors[i] = str(error)


def _as_dict(image: str, prediction: Prediction | None, error: str | None) -> dict[str, Any]:
    answer = asdict(prediction) if prediction is not None else {}
    keys = ("label", "index", "probability", "top_k", "model_version")
    return {"image": image, **{key: answer.get(key) for key in keys}, "error": error}


def _print(results: list[tuple[str, Prediction | None, str | None]]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    block = "█" if console.encoding.lower().startswith("utf") else "#"
    table = Table("image", "label", "probability", "", "version", box=None, header_style="bold", pad_edge=False)
    table.columns[2].justify = "right"
    for image, prediction, _ in results:
        for rank, candidate in enumerate(prediction.top_k if prediction is not None else ()):
            bar = block * round(candidate.probability * _BAR_WIDTH)
            first = rank == 0 and prediction is not None
            cells = (
                image if first else "",
                candidate.label,
                f"{candidate.probability:.2%}",
                bar.ljust(_BAR_WIDTH),
                prediction.model_version if first and prediction is not None else "",
            )
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))  # Text: a name may look like markup
    if table.row_count:
        console.print(table)
    for _, _, error in results:
        if error is not None:
            click.echo(f"convoy: {error}", err=True)
