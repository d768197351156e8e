"""The list of vulnerabilities, and what is compared with it."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from importlib import resources

import pytest
from pydantic import ValidationError

from convoy.serving.doctor import version, vulnerabilities
from convoy.serving.doctor.vulnerabilities import Vulnerability, VulnerabilityList
from convoy.serving.triton.finding import Finding

from .conftest import Machine

KNOWN = VulnerabilityList.load()
COMPOSE = "services:\n  triton:\n    image: {image}\n"


def examine(machine: Machine, today: datetime.date = KNOWN.date) -> dict[str, Finding]:
    return {finding.name: finding for finding in vulnerabilities.examine(machine.world, KNOWN, today)}


def compose(machine: Machine, image: str, name: str = "docker-compose.yml") -> None:
    (machine.folder / "here" / name).write_text(COMPOSE.format(image=image))


def test_the_list_lies_in_the_package() -> None:
    text = resources.files("convoy.serving.doctor").joinpath("vulnerabilities.json").read_text()

    assert json.loads(text)["date"] == KNOWN.date.isoformat()


def test_each_entry_is_there_once_and_was_published_before_the_list_was_read() -> None:
    numbers = [entry.id for entry in KNOWN.vulnerabilities]

    assert len(set(numbers)) == len(numbers)
    assert all(entry.published <= KNOWN.date for entry in KNOWN.vulnerabilities)


def test_ratings_agree_with_their_scores() -> None:
    bands = {"critical": (9.0, 10.0), "high": (7.0, 8.9), "medium": (4.0, 6.9), "low": (0.1, 3.9)}
    for entry in KNOWN.vulnerabilities:
        if entry.score is None:
            assert entry.severity == "unrated"
        else:
            low, high = bands[entry.severity]
            assert low <= entry.score <= high, entry.id


def test_no_entry_about_triton_is_mended_only_after_the_floor() -> None:
    newest = max((entry.fixed for entry in KNOWN.vulnerabilities if entry.product == "triton"), key=version.key)

    assert newest == KNOWN.floor


@pytest.mark.parametrize(
    ("server", "container"),
    [
        ("2.51.0", "24.10"),
        ("2.59.0", "25.06"),
        ("2.59.1", "25.07"),
        ("2.60.0", "25.08"),
        ("2.70.0", "26.06"),
        ("2.71.0", "26.07"),
        ("2.70.1", "26.06"),  # a patch that nobody listed
        ("2.30.0", "24.01"),  # older than all that are listed
        ("2.99.0", None),
    ],
)
def test_a_servers_version_is_that_of_a_container(server: str, container: str | None) -> None:
    assert KNOWN.container_of(server) == container


@pytest.mark.parametrize(("container", "numbers"), [("26.06", {"CVE-2026-16497"}), ("26.07", set()), ("26.09", set())])
def test_a_release_has_what_was_mended_after_it(container: str, numbers: set[str]) -> None:
    assert {entry.id for entry in KNOWN.of("triton", container)} == numbers


def test_the_worst_comes_first() -> None:
    found = KNOWN.of("triton", "24.10")

    assert [entry.severity for entry in found] == sorted([entry.severity for entry in found], key=vulnerabilities.SEVERITIES.index)
    assert "critical" in vulnerabilities.describe(found)


@pytest.mark.parametrize(("installed", "affected"), [("11.2.0", False), ("11.2.1", True), ("12.1.1", True), ("12.2.0", False)])
def test_a_range_has_two_ends(installed: str, affected: bool) -> None:
    entry = next(entry for entry in KNOWN.vulnerabilities if entry.id == "CVE-2026-42309")

    assert entry.affects(installed) is affected


@pytest.mark.parametrize(
    "change",
    [{"source": "http://example.org"}, {"fixed": "soon"}, {"severity": "bad"}, {"product": "rust"}, {"extra": 1}, {"score": 11}],
)
def test_a_malformed_entry_is_refused(change: dict[str, object]) -> None:
    entry = {**KNOWN.vulnerabilities[0].model_dump(mode="json"), **change}

    with pytest.raises(ValidationError):
        Vulnerability.model_validate(entry)


def test_an_old_list_says_so(machine: Machine) -> None:
    found = examine(machine, KNOWN.date + datetime.timedelta(days=vulnerabilities.OLD_AFTER_DAYS + 1))

    assert found["list"].level == "warning"
    assert examine(machine)["list"].level == "ok"


def test_the_wheels_server_belongs_on_localhost(machine: Machine) -> None:
    machine.distribution("nvidia-pytriton", "0.7.0")

    finding = examine(machine)["nvidia-pytriton"]

    assert finding.level == "warning"
    assert "container 24.10" in finding.found
    assert "127.0.0.1" in finding.advice
    assert len(finding.sources) == len(KNOWN.of("triton", "24.10"))


def test_a_wheel_that_is_not_in_the_list_is_said_to_be_unknown(machine: Machine) -> None:
    machine.distribution("nvidia-pytriton", "9.9.9")

    assert examine(machine)["nvidia-pytriton"].level == "info"


@pytest.mark.parametrize(
    ("name", "installed", "wanted"),
    [
        ("onnx", "1.20.1", "1.21.0"),
        ("torch", "2.5.0", "2.10.0"),
        ("Pillow", "11.0.0", "13.0.0"),
        ("onnxruntime-gpu", "1.20.0", "1.28.3"),
    ],
)
def test_an_affected_package_is_named_with_the_version_that_helps(machine: Machine, name: str, installed: str, wanted: str) -> None:
    machine.distribution(name, installed)

    finding = examine(machine)[name.lower()]

    assert finding.level == "warning"
    assert f"pip install '{name.lower()}>={wanted}'" in finding.advice
    assert all("https://" in source for source in finding.sources)


def test_a_package_without_known_vulnerabilities_is_in_order(machine: Machine) -> None:
    machine.distribution("torch", "2.12.0+cu130")

    assert examine(machine)["torch"].found == "2.12.0+cu130: none known"


def test_torch_is_not_needed_for_serving(machine: Machine) -> None:
    assert examine(machine)["torch"].level == "info"


def test_a_version_that_is_none_is_a_warning(machine: Machine) -> None:
    machine.distribution("onnx", "unknown")

    assert examine(machine)["onnx"].level == "warning"


@pytest.mark.parametrize(
    ("image", "level"),
    [
        ("nvcr.io/nvidia/tritonserver:26.07-py3", "ok"),
        ("${TRITON_IMAGE:-nvcr.io/nvidia/tritonserver:26.09-py3}", "ok"),
        ("nvcr.io/nvidia/tritonserver:26.06-py3", "problem"),
        ("${TRITON_IMAGE-nvcr.io/nvidia/tritonserver:24.10-py3}", "problem"),
    ],
)
def test_the_image_of_compose_is_compared_with_the_floor(machine: Machine, image: str, level: str) -> None:
    compose(machine, image)

    finding = examine(machine)["image"]

    assert finding.level == level
    if level == "problem":
        assert finding.expected == "26.07 or newer"


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_the_image_comes_from_the_environment_and_from_dotenv(machine: Machine, quote: str) -> None:
    compose(machine, "${TRITON_IMAGE:-nvcr.io/nvidia/tritonserver:26.09-py3}", "compose.yaml")
    old = "nvcr.io/nvidia/tritonserver:25.01-py3"
    (machine.folder / "here/.env").write_text(f"# the image\nTRITON_IMAGE={quote}{old}{quote}\n")
    assert old in examine(machine)["image"].found

    environment = {**machine.world.environment, "TRITON_IMAGE": "nvcr.io/nvidia/tritonserver:26.08-py3"}
    overridden = replace(machine, world=replace(machine.world, environment=environment))
    assert examine(overridden)["image"].level == "ok"


def test_a_folder_without_compose_has_no_image(machine: Machine) -> None:
    assert "image" not in examine(machine)


def test_the_image_that_convoy_brings_is_not_below_the_floor() -> None:
    from pathlib import Path

    from convoy.serving.doctor.world import World

    root = Path(__file__).parents[3]
    found = vulnerabilities.examine(replace(World.here(root), folder=root), KNOWN, KNOWN.date)

    assert [finding.level for finding in found if finding.name == "image"] == ["ok"]
