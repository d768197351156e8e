"""Docker, compose and the GPU runtime: what ``docker compose up`` needs. ``convoy serve`` needs none of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convoy.serving.doctor.world import Answer, Programs, World
from convoy.serving.triton.finding import Finding, info, ok, warning

_TOOLKIT = "docs.nvidia.com/datacenter/cloud-native/container-toolkit"
_SPECS = ("etc/cdi", "var/run/cdi", "run/cdi")


@dataclass(frozen=True)
class Daemon:
    """What Docker's daemon says about itself; nothing where it does not answer.

    Attributes:
        data: The folder of its images and volumes; None where unknown.
        runtimes: The names of its container runtimes.
        version: Its release.
    """

    data: Path | None = None
    runtimes: frozenset[str] = field(default_factory=frozenset)
    version: str = ""


def examine(world: World, programs: Programs, *, has_gpu: bool) -> tuple[list[Finding], Daemon]:
    """Look at the client, the daemon, compose, and what lets a container use the GPU."""
    program = programs.find("docker")
    if program is None:
        advice = "docs.docker.com/engine/install says how; without it `convoy serve` runs the server from the wheel."
        return [info("client", "not installed: only `docker compose up` needs it", advice)], Daemon()
    client = programs.run([program, "--version"], limit_s=1.0)
    if client.status != 0:
        broken = warning("client", f"{program} does not run: {client.reason}", "Install Docker again.", expected="Docker's client")
        return [broken], Daemon()
    findings = [ok("client", client.output.strip().removeprefix("Docker version "))]
    compose = programs.run([program, "compose", "version", "--short"], limit_s=1.0)
    answer = programs.run([program, "info", "--format", "{{json .}}"], limit_s=2.0)
    daemon = _parse(answer)
    findings += [_daemon(world, answer, daemon), _compose(compose, programs)]
    if daemon.version:
        findings.append(_gpu_runtime(world, daemon, has_gpu=has_gpu))
    return findings, daemon


def _parse(answer: Answer) -> Daemon:
    """The daemon in what ``docker info`` printed; the client prints a document, too, where the daemon does not answer."""
    try:
        said: dict[str, Any] = json.loads(answer.output)
    except ValueError:
        return Daemon()
    if answer.status != 0 or not said.get("ServerVersion"):
        return Daemon()
    root = said.get("DockerRootDir")
    return Daemon(Path(root) if root else None, frozenset(said.get("Runtimes") or ()), said["ServerVersion"])


def _daemon(world: World, answer: Answer, daemon: Daemon) -> Finding:
    if daemon.version:
        return ok("daemon", daemon.version)
    said = answer.output + answer.error
    where = world.environment.get("DOCKER_HOST")
    if answer.status is None:
        found, advice = "does not answer in time", "sudo systemctl restart docker, then look at `journalctl -u docker`."
    elif "permission denied" in said.lower():
        found = "this user may not talk to it"
        advice = "sudo usermod -aG docker $USER, then log in again (the group has root's rights); or use rootless Docker."
    elif where:
        found, advice = answer.reason, f"DOCKER_HOST is {where}: start Docker there, or unset the variable."
    else:
        found, advice = answer.reason, "Start it: sudo systemctl enable --now docker."
    return warning("daemon", found, advice, expected="a daemon that answers")


def _compose(answer: Answer, programs: Programs) -> Finding:
    version = answer.output.strip()
    if answer.status == 0 and version.lstrip("v").startswith(tuple("23456789")):
        return ok("compose", version)
    old = programs.find("docker-compose")
    found = f"{old}, the old program: it does not read this docker-compose.yml" if old else "the plugin is not installed"
    advice = "Install the plugin: apt-get install docker-compose-plugin (Docker's repository) or docker-compose-v2 (Ubuntu's)."
    if answer.status is None:
        found = "`docker compose version` does not answer in time"
        advice = f"Run it by hand; where it hangs, install it again. {advice}"
    return warning("compose", found, advice, expected="Compose 2 or newer")


def _gpu_runtime(world: World, daemon: Daemon, *, has_gpu: bool) -> Finding:
    specs = [path for folder in _SPECS for path in (world.root / folder).glob("*nvidia*")]
    ways = [*(["the runtime nvidia"] if "nvidia" in daemon.runtimes else []), *(str(path) for path in sorted(set(specs)))]
    if ways:
        return ok("GPU runtime", ", ".join(ways))
    if not has_gpu:
        return info("GPU runtime", "none, and no GPU: `docker compose up triton-cpu` runs the server without one")
    return warning(
        "GPU runtime",
        "none: containers cannot use the GPU of this machine",
        f"Install NVIDIA's container toolkit ({_TOOLKIT}), then sudo nvidia-ctk runtime configure --runtime=docker and "
        "sudo systemctl restart docker.",
        expected="the runtime nvidia, or a CDI specification in /etc/cdi",
    )
