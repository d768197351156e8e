"""Published vulnerabilities, kept as data with their sources, and which of them a version has.

The list is ``vulnerabilities.json`` beside this module. It is not fetched: a doctor that needs the network is of no use where the
network is what is wrong. Its date says how old it is; ``docs/doctor.md`` says how to add to it.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from convoy.serving.doctor import version as versions
from convoy.serving.doctor.world import World
from convoy.serving.triton.finding import Finding, info, ok, problem, warning
from convoy.serving.triton.installation import INSTALL, ONNXRUNTIME_BUILDS, PACKAGE

Product = Literal["triton", "onnx", "onnxruntime", "pillow", "torch"]
Severity = Literal["critical", "high", "medium", "low", "unrated"]

SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low", "unrated")
OLD_AFTER_DAYS = 120
WHEEL_TRITON = {"0.7.0": "2.51.0"}
"""The Triton inside each release of the wheel."""

_PACKAGES: dict[str, Product] = {
    "onnx": "onnx",
    "pillow": "pillow",
    "torch": "torch",
    **dict.fromkeys(ONNXRUNTIME_BUILDS, "onnxruntime"),
}
_IMAGE = re.compile(r"nvcr\.io/nvidia/tritonserver:(\d\d\.\d\d)[\w.-]*")
_COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")  # in Docker's order
_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")


class Vulnerability(BaseModel):
    """One entry of the list.

    Attributes:
        id: Its CVE number; where its makers published it without one, the release that mended it.
        product: What has it.
        introduced: The first version that has it; None where all before ``fixed`` do.
        fixed: The first version without it; Triton's are those of its containers ("26.07").
        severity: As its source rates it.
        score: The CVSS base score of its source.
        summary: What it lets happen.
        published: When.
        source: Where that is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    product: Product
    introduced: str | None
    fixed: str
    severity: Severity
    score: float | None = Field(ge=0, le=10)
    summary: str = Field(min_length=1)
    published: datetime.date
    source: str = Field(pattern=r"^https://")

    @field_validator("introduced", "fixed")
    @classmethod
    def _is_a_version(cls, value: str | None) -> str | None:
        if value is not None:
            versions.key(value)
        return value

    def affects(self, version: str) -> bool:
        """Whether ``version`` has it."""
        found = versions.key(version)
        return (self.introduced is None or versions.key(self.introduced) <= found) and found < versions.key(self.fixed)


class VulnerabilityList(BaseModel):
    """The list.

    Attributes:
        date: The day on which its sources were last read.
        floor: The oldest container release that may be reached by others.
        floor_source: Why it is that one.
        triton_releases: The server's version: the container that brings it ("2.51.0": "24.10").
        triton_releases_sources: Where these come from.
        vulnerabilities: The entries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: datetime.date
    floor: str
    floor_source: str
    triton_releases: dict[str, str]
    triton_releases_sources: tuple[str, ...]
    vulnerabilities: tuple[Vulnerability, ...]

    @classmethod
    def load(cls) -> VulnerabilityList:
        """The list that this Convoy brings along."""
        return cls.model_validate_json(resources.files("convoy.serving.doctor").joinpath("vulnerabilities.json").read_bytes())

    def of(self, product: Product, version: str) -> list[Vulnerability]:
        """What ``version`` of ``product`` has, the worst first."""
        found = [entry for entry in self.vulnerabilities if entry.product == product and entry.affects(version)]
        return sorted(found, key=lambda entry: (SEVERITIES.index(entry.severity), -(entry.score or 0.0), entry.id))

    def container_of(self, server: str) -> str | None:
        """The container release of a server's version: "24.10" of "2.51.0"; None of one that is newer than the list."""
        for known, release in self.triton_releases.items():
            if versions.key(known) == versions.key(server):
                return release
        older = [release for known, release in self.triton_releases.items() if versions.key(known) < versions.key(server)]
        newer = [release for known, release in self.triton_releases.items() if versions.key(known) > versions.key(server)]
        if not newer:
            return None
        return older[-1] if older else newer[0]  # a patch of a known release, or older than all of them

    def is_below_floor(self, container: str) -> bool:
        """Whether a container release is older than what may be public."""
        return versions.key(container) < versions.key(self.floor)


def examine(world: World, known: VulnerabilityList, today: datetime.date) -> list[Finding]:
    """Compare the installed packages, the wheel's server and the image in ``docker-compose.yml`` with the list."""
    findings = [_age(known, today), *_wheel(world, known), *_packages(world, known)]
    return [*findings, *_image(world, known)]


def describe(found: list[Vulnerability]) -> str:
    """How many there are of each severity, and the worst: "44 published vulnerabilities (6 critical, ...), such as CVE-..."."""
    counts = Counter(entry.severity for entry in found)
    each = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
    noun = "vulnerability" if len(found) == 1 else "vulnerabilities"
    return f"{len(found)} published {noun} ({each}), the worst {found[0].id}: {found[0].summary.rstrip('.')}"


def sources(found: list[Vulnerability]) -> tuple[str, ...]:
    """Each entry's number and source, for ``Finding.sources``."""
    return tuple(f"{entry.id} {entry.source}" for entry in found)


def _age(known: VulnerabilityList, today: datetime.date) -> Finding:
    said = f"{len(known.vulnerabilities)} vulnerabilities, read from their sources on {known.date}"
    if (today - known.date).days > OLD_AFTER_DAYS:
        return warning(
            "list",
            said,
            "Update Convoy, or look at nvidia.com/security yourself: what was published since is not in the list.",
            expected=f"a list no older than {OLD_AFTER_DAYS} days",
        )
    return ok("list", said)


def _wheel(world: World, known: VulnerabilityList) -> list[Finding]:
    installed = _distributions(world).get(PACKAGE)
    if installed is None:
        return []
    server = WHEEL_TRITON.get(installed)
    container = known.container_of(server) if server else None
    if container is None:
        return [info(PACKAGE, f"{installed}, whose server is not in the list", "Keep it on 127.0.0.1, as `convoy serve` does.")]
    found = known.of("triton", container)
    if not found:
        return [ok(PACKAGE, f"{installed} (Triton {server}, container {container}): none known")]
    return [
        warning(
            PACKAGE,
            f"{installed} (Triton {server}, container {container}) has {describe(found)}",
            "Keep it on 127.0.0.1, as `convoy serve` does; for anything that others reach use NVIDIA's container "
            f"{known.floor} or newer.",
            sources=sources(found),
        )
    ]


def _packages(world: World, known: VulnerabilityList) -> list[Finding]:
    installed, findings = _distributions(world), []
    for name, product in _PACKAGES.items():
        if name not in installed:
            continue
        version = installed[name]
        try:
            found = known.of(product, version)
        except ValueError as error:
            findings.append(warning(name, str(error), f"Install it again: pip install --force-reinstall {name}"))
            continue
        if found:
            newest = max((entry.fixed for entry in found), key=versions.key)
            advice = f"pip install '{name}>={newest}'"
            text = f"{version} has {describe(found)}"
            findings.append(warning(name, text, advice, expected=f"{newest} or newer", sources=sources(found)))
        else:
            findings.append(ok(name, f"{version}: none known"))
    if "torch" not in installed:
        advice = f"`convoy train` and `convoy export` need it: {INSTALL.replace('serve', 'export')}"
        findings.append(info("torch", "not installed; serving does without", advice))
    return findings


def _image(world: World, known: VulnerabilityList) -> list[Finding]:
    """The image that ``docker compose`` would run in the current folder."""
    path = next((world.folder / name for name in _COMPOSE_FILES if (world.folder / name).is_file()), None)
    if path is None:
        return []
    text = path.read_text(errors="replace")
    variables = {**_dotenv(world.folder), **world.environment}
    lines = [line.partition("image:")[2] for line in text.splitlines() if line.strip().startswith("image:")]
    resolved = [_VARIABLE.sub(lambda match: variables.get(match[1]) or match[2] or "", line) for line in lines]
    findings = []
    for match in dict.fromkeys(match for line in resolved if (match := _IMAGE.search(line))):
        image, container = match[0], match[1]
        found = known.of("triton", container)
        if known.is_below_floor(container):
            said = f"{path.name} runs {image}" + (f", which has {describe(found)}" if found else "")
            advice = f"Set TRITON_IMAGE to nvcr.io/nvidia/tritonserver:{known.floor}-py3 or newer, here or in .env."
            findings.append(problem("image", said, advice, expected=f"{known.floor} or newer", sources=sources(found)))
        else:
            findings.append(ok("image", f"{path.name} runs {image}: none known"))
    return findings


def _dotenv(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / ".env").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [
        line.strip().removeprefix("export ").partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#")
    ]
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def _distributions(world: World) -> dict[str, str]:
    """Name and version of every installed package; of two of one name the one that Python would import."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions(path=list(dict.fromkeys(world.module_path))):
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        found.setdefault(name, distribution.version)
    return found
