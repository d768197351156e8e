"""All checks of ``convoy doctor``, side by side and within a time limit: what hangs is said to hang and holds up nothing."""

from __future__ import annotations

import datetime
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from convoy.serving.client._endpoint import Endpoint
from convoy.serving.doctor import cuda, disk, docker, gpu, onnxruntime, port, server, shared_memory
from convoy.serving.doctor.vulnerabilities import VulnerabilityList
from convoy.serving.doctor.vulnerabilities import examine as compare_versions
from convoy.serving.doctor.world import Programs, World
from convoy.serving.triton.finding import Finding, Level, warning
from convoy.serving.triton.installation import examine as examine_triton

LIMIT_S = 4.3
LEVELS: tuple[Level, ...] = ("problem", "warning", "info", "ok")
TRITON, PORTS, SHARED_MEMORY, DISK = "Triton from the wheel", "Ports", "Shared memory", "Disk"
ONNXRUNTIME, GPU, CUDA, DOCKER, VERSIONS, SERVER = "ONNX Runtime", "GPU", "CUDA libraries", "Docker", "Versions", "Running server"
GROUPS = (TRITON, ONNXRUNTIME, GPU, CUDA, SHARED_MEMORY, PORTS, DISK, DOCKER, VERSIONS, SERVER)
SERVING = (TRITON, ONNXRUNTIME, SHARED_MEMORY, DISK)
"""What ``convoy serve`` needs: a problem in one of these keeps it from working."""


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        findings: In the order of ``GROUPS``.
        seconds: How long it took.
    """

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def counts(self) -> dict[Level, int]:
        """How many findings there are of each level."""
        counted = Counter(finding.level for finding in self.findings)
        return {level: counted[level] for level in LEVELS}

    @property
    def can_serve(self) -> bool:
        """Whether ``convoy serve`` can work here."""
        return not any(finding.level == "problem" and finding.group in SERVING for finding in self.findings)


def examine(world: World, url: str | None = None, *, limit_s: float = LIMIT_S) -> Examination:
    """Make every check.

    Args:
        world: The machine.
        url: The server to look at; None: the one on the default ports, where there is one.
        limit_s: When to stop waiting for checks that hang.

    Raises:
        UsageError: ``url`` is none.
    """
    started = time.monotonic()
    if url is not None:
        Endpoint.parse(url)
    known, has_gpu = VulnerabilityList.load(), gpu.is_there(world)
    build = cuda.find_build(world)
    daemon_known: list[docker.Daemon] = []

    def programs() -> Programs:
        return Programs(world.environment, limit_s=limit_s * 0.8)

    def look_at_docker() -> list[Finding]:
        findings, daemon = docker.examine(world, programs(), has_gpu=has_gpu)
        daemon_known.append(daemon)
        return findings

    checks: dict[str, Callable[[], list[Finding]]] = {
        TRITON: lambda: [finding for finding in examine_triton()[0] if finding.name != ONNXRUNTIME],  # that has a group of its own
        ONNXRUNTIME: lambda: onnxruntime.examine(world, programs(), has_gpu=has_gpu),
        GPU: lambda: gpu.examine(world, programs(), build.generation if build else ""),
        CUDA: lambda: cuda.examine(world, programs(), has_gpu=has_gpu),
        SHARED_MEMORY: lambda: shared_memory.examine(world),
        PORTS: lambda: port.examine(world),
        DOCKER: look_at_docker,
        VERSIONS: lambda: compare_versions(world, known, datetime.datetime.now(tz=datetime.timezone.utc).date()),
        SERVER: lambda: server.examine(world, known, url),
    }
    found = run_checks(checks, started + limit_s)
    docker_data = next((daemon.data for daemon in daemon_known), None)
    local = docker_data if docker_data is not None and docker_data.exists() else None
    found |= run_checks({DISK: lambda: disk.examine(world, local)}, max(started + limit_s, time.monotonic() + 0.3))
    findings = tuple(replace(finding, group=group) for group in GROUPS for finding in found[group])
    return Examination(findings, time.monotonic() - started)


def run_checks(checks: dict[str, Callable[[], list[Finding]]], end: float) -> dict[str, list[Finding]]:
    """Make checks at the same time.

    Args:
        checks: By group.
        end: When to stop waiting, on the monotonic clock.

    Returns:
        What each found; for one that hangs or fails, that it does.
    """
    found: dict[str, list[Finding]] = {}

    def run(group: str, check: Callable[[], list[Finding]]) -> None:
        try:
            found[group] = check()
        except Exception as error:  # noqa: BLE001 - one check that a sick machine breaks must not hide what the others found
            found[group] = [
                warning("check", f"it failed: {type(error).__name__}: {error}", "Look at this part by hand, and report this text.")
            ]

    # Daemons: a disk or a program that never answers must not keep the command from ending.
    threads = {group: threading.Thread(target=run, args=(group, check), daemon=True) for group, check in checks.items()}
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    late = warning("check", "it did not end in time", "Something that it looks at hangs: a disk, a device or a program.")
    return {group: found.get(group, [late]) for group in checks}


def examine_here(repository: Path, url: str | None = None) -> Examination:
    """Make every check on this machine; see ``examine``."""
    return examine(World.here(repository), url)
