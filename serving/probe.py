"""Golden inputs replayed on a running server: does it answer as PyTorch did at export?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convoy.contract.errors import InvalidResponseError

if TYPE_CHECKING:
    from convoy.contract.agreement import Agreement
    from convoy.contract.bundle import Bundle
    from convoy.serving.client import Client


def replay(client: Client, bundle: Bundle, model_name: str, model_version: str = "") -> dict[str, Agreement]:
    """Send the bundle's golden inputs and compare the answers with PyTorch's.

    Batches of the largest validated size are sent first, then the first image once more alone, since a server may treat a batch
    and a single image differently.

    Args:
        client: A client of the server.
        bundle: The export, or the deployed version's folder, with goldens and tolerances.
        model_name: The name under which the server knows the model.
        model_version: The version to ask; the server's choice where empty.

    Returns:
        What was found, by output name. The server passes where each one ``passed``.

    Raises:
        ClientError: The server did not answer, or not with the model's outputs.
        ContractError: The goldens are damaged.
    """
    goldens = bundle.goldens()
    batches = goldens.batches(bundle.manifest.max_batch_size) + goldens.batches(1)[:1]
    answers = [client.infer(model_name, batch, model_version=model_version) for batch in batches]
    agreements = {}
    for name, golden in goldens.outputs.items():
        expected = np.concatenate([golden, golden[:1]])
        missing = [answer for answer in answers if name not in answer.outputs]
        if missing:
            raise InvalidResponseError(
                f"{model_name}: expected the outputs {', '.join(goldens.outputs)}, found {sorted(missing[0].outputs)}."
            )
        actual = np.concatenate([answer.outputs[name] for answer in answers])
        if actual.shape != expected.shape:
            raise InvalidResponseError(f"{model_name}: {name}: expected shape {expected.shape}, found {actual.shape}.")
        agreements[name] = bundle.compare(name, expected, actual)
    return agreements
