"""An exported reader on the real Triton: deployed, linted, proven, probed, and read with by the client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from convoy.cli.program import program
from convoy.contract.bundle import Bundle
from convoy.contract.errors import IncompatibleModelError, ServerError
from convoy.contract.goldens import Goldens
from convoy.serving.client import Client
from convoy.serving.probe import replay
from convoy.serving.repository import Repository
from convoy.serving.triton import TritonServer
from convoy.serving.triton.proof import ask, prove

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def repository(reader_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("readers") / "repository"
    Repository(root).deploy(reader_bundle)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


def test_a_deployed_reader_is_listed_linted_and_keeps_its_interface(
    repository: Path, reader_bundle: Bundle, tmp_path: Path
) -> None:
    checked = CliRunner().invoke(program, ["models", "--check", "--repository", str(repository)])
    assert checked.exit_code == 0, checked.output
    assert "0 errors, 0 warnings" in checked.output
    assert "52 fields of strokes" in " ".join(checked.output.split())
    assert (repository / "reader" / "labels.txt").read_text().splitlines() == list(reader_bundle.manifest.labels)
    folder = tmp_path / "other"
    shutil.copytree(reader_bundle.folder, folder)
    reading = reader_bundle.manifest.reading
    assert reading is not None
    other = reader_bundle.manifest.model_copy(update={"reading": reading.model_copy(update={"decimal": "."})})
    with pytest.raises(IncompatibleModelError, match="reading would change under one name"):
        Repository(repository).deploy(Bundle.seal(folder, other, reader_bundle.report))


def test_the_server_answers_as_pytorch_did(server: TritonServer, repository: Path, reader_bundle: Bundle) -> None:
    for url in (server.grpc_url, server.http_url):
        with Client(url) as client:
            assert ask(client, "reader", timeout_s=60) == "1"
            found = replay(client, reader_bundle, "reader")
            assert {name: agreement.n for name, agreement in found.items()} == dict.fromkeys(reader_bundle.goldens().outputs, 17)
            assert all(agreement.passed for agreement in found.values())
            assert prove(client, repository, "reader").n_goldens == 16
    probed = CliRunner().invoke(program, ["probe", server.grpc_url, "reader", "--repository", str(repository)])
    assert probed.exit_code == 0, probed.output
    assert probed.output.count("passed  reader version 1") == 5
    assert "top-1" not in probed.output


def test_other_answers_fail_the_probe(server: TritonServer, reader_bundle: Bundle, repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "reader" / "1"
    shutil.copytree(repository / "reader" / "1", folder)
    goldens = reader_bundle.goldens()
    moved = {name: values.copy() for name, values in goldens.outputs.items()}
    moved["characters"][0, 0, 0] = (moved["characters"][0, 0, 0] + 1) % 10
    Goldens(goldens.inputs, moved, goldens.truth).save(folder / "goldens.npz")
    other = Bundle.seal(folder, reader_bundle.manifest, reader_bundle.report)
    with Client(server.grpc_url) as client:
        found = replay(client, other, "reader")
        assert [name for name, agreement in found.items() if not agreement.passed] == ["characters"]
        assert found["characters"].n_outside == 2  # the first golden is sent once more alone
        with pytest.raises(ServerError, match="characters: 2 values out of tolerance"):
            prove(client, tmp_path / "repository", "reader")


def test_fields_of_all_widths_are_read_as_pytorch_reads_them(server: TritonServer, reader_case: Any) -> None:
    fields = reader_case.evidence.fields[:8]
    with Client(server.grpc_url) as client:
        amounts = client.read_amounts(list(fields), model_name="reader")
    alphabet = reader_case.reader.lattice.alphabet
    for field, amount in zip(fields, amounts, strict=True):
        with torch.inference_mode():
            expected = reader_case.reader(torch.from_numpy(field.pixels[None]), torch.tensor([[field.width_px]]))
        text = "".join(alphabet[place] for place in expected.characters[0, 0].tolist() if place >= 0)
        assert amount.text == text
        assert amount.confidence == pytest.approx(float(expected.confidence), abs=1e-4)
    assert len({np.asarray(field.pixels).shape for field in fields}) == 2
