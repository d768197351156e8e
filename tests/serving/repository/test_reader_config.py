from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from convoy.cli.program import program
from convoy.contract.bundle import Bundle
from convoy.contract.errors import IncompatibleModelError
from convoy.contract.manifest import Manifest, ModelInterface
from convoy.contract.reading import OperatingPoint
from convoy.contract.validation import Check
from convoy.serving.repository import Repository
from convoy.serving.repository.config import interface_of, load_config, make_config
from convoy.serving.repository.configuration import ConfigText


def test_a_reader_is_warmed_up_at_its_narrowest_and_its_widest_and_has_no_labels_of_outputs(tmp_path, write_reader) -> None:
    manifest = Manifest.load(write_reader(tmp_path, sealed=True) / "1" / "manifest.json")
    config = make_config(manifest, "check-reader", 1)
    assert [one.dims for one in config.input] == [(8, -1, 1), (1,)]
    assert all(not one.label_filename for one in config.output)
    warmups = {one.name: (one.batch_size, one.inputs["image"].dims, one.inputs["width"].dims) for one in config.model_warmup}
    assert warmups == {"batch of 1, 16 columns": (1, (8, 16, 1), (1,)), "batch of 8, 64 columns": (8, (8, 64, 1), (1,))}
    message = ConfigText(config.to_text().text).message
    interface = interface_of(message, tmp_path)
    assert isinstance(interface, ModelInterface)
    assert interface == manifest.interface


POINT = OperatingPoint(threshold=0.9, coverage=0.25, error=0.01, n=400)
OTHER = OperatingPoint(threshold=0.6, coverage=0.5, error=0.0, n=700)

MakeReader = Callable[..., Bundle]


@pytest.fixture
def make_reader(tmp_path: Path, write_reader: Callable[..., Path]) -> MakeReader:
    """Makes an export of the reader, with another ``reading``."""
    count = 0

    def make(**reading: object) -> Bundle:
        nonlocal count
        count += 1
        folder = write_reader(tmp_path / f"exports-{count}", sealed=True) / "1"
        bundle = Bundle.open(folder)
        assert bundle.manifest.reading is not None
        changed = bundle.manifest.reading.model_copy(update=reading)
        check = Check(name="a check", verdict="passed", expected="x", found="y")
        report = bundle.report.model_copy(update={"verdict": "passed", "checks": (check,)})
        return Bundle.seal(folder, bundle.manifest.model_copy(update={"reading": changed}), report)

    return make


def served_point(repository: Repository) -> OperatingPoint | None:
    """What the served configuration tells clients."""
    (name,) = (entry.name for entry in repository.models())
    interface = interface_of(load_config(repository.root / name / "config.pbtxt"), repository.root)
    assert interface is not None
    assert interface.reading is not None
    return interface.reading.accept


@pytest.mark.parametrize(("before", "after"), [(POINT, OTHER), (None, POINT), (POINT, None)])
def test_a_reader_with_another_operating_point_is_the_next_version_and_rolls_back(
    repository: Repository, make_reader: MakeReader, before: OperatingPoint | None, after: OperatingPoint | None
) -> None:
    first = repository.deploy(make_reader(accept=before))
    name = first.model_name
    done = repository.deploy(make_reader(accept=after))
    assert (done.version, done.previous) == (2, 1)
    assert served_point(repository) == after
    assert repository.rollback(name).version == 1
    assert served_point(repository) == before
    assert repository.rollback(name, to=2).version == 2
    assert served_point(repository) == after
    assert all(not version.problem for entry in repository.models(check=True) for version in entry.versions)


@pytest.mark.parametrize("reading", [{"decimal": ","}, {"grammar": "us"}])
def test_a_reader_whose_amounts_mean_something_else_is_no_next_version(
    repository: Repository, make_reader: MakeReader, reading: dict[str, object]
) -> None:
    repository.deploy(make_reader(accept=POINT))
    with pytest.raises(IncompatibleModelError, match="reading would change under one name"):
        repository.deploy(make_reader(accept=OTHER, **reading))


@pytest.mark.parametrize("accept", [None, POINT])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_deploy_says_that_a_reader_without_a_threshold_accepts_nothing(
    make_reader: MakeReader, tmp_path: Path, accept: OperatingPoint | None, options: tuple[str, ...]
) -> None:
    words = ["deploy", str(make_reader(accept=accept).folder), "--repository", str(tmp_path / "repository"), *options]
    result = CliRunner().invoke(program, words)
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "accepts no amount" in line and "all go to a person" in line]
    assert len(said) == (accept is None)
