"""A running server: what stands open beside inference, to whom, and which vulnerabilities its version has."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.serving.client._endpoint import Endpoint
from convoy.serving.doctor.listener import Process, holder, listeners
from convoy.serving.doctor.probe import PROBES, GrpcDoor, HttpDoor, Probe, Reply, accepts, open_door
from convoy.serving.doctor.vulnerabilities import VulnerabilityList, describe, sources
from convoy.serving.doctor.world import World
from convoy.serving.triton.finding import Finding, info, ok, problem, warning

DEFAULT_ENDPOINTS = (Endpoint("http", "127.0.0.1", 8000), Endpoint("grpc", "127.0.0.1", 8001))
METRICS_PORT = 8002

_MODE = re.compile(r"--model-control-mode=(\w+)")
_RESTRICT = (
    "start tritonserver with --http-restricted-api={categories}:KEY=VALUE and --grpc-restricted-protocol={categories}:KEY=VALUE "
    "(callers then need the header), or let only a proxy reach it"
)
_BIND = "Bind it to this machine: --http-address=127.0.0.1 --grpc-address=127.0.0.1; in compose TRITON_BIND=127.0.0.1."


@dataclass(frozen=True)
class Reach:
    """Who can connect to a server.

    Attributes:
        public: Whether others than this machine can; None where that cannot be seen.
        words: How that is known.
        process: The server's process, where it is this user's.
    """

    public: bool | None
    words: str
    process: Process | None = None


def examine(
    world: World,
    known: VulnerabilityList,
    url: str | None = None,
    *,
    endpoints: Sequence[Endpoint] = DEFAULT_ENDPOINTS,
    metrics_port: int = METRICS_PORT,
) -> list[Finding]:
    """Look at the server at ``url``, else at the one that answers on the default ports.

    Args:
        world: The machine.
        known: The published vulnerabilities.
        url: ``http://``, ``https://``, ``grpc://`` or ``grpcs://`` with host and port; None: the default ports.
        endpoints: Where a server is looked for without ``url``.
        metrics_port: Where its metrics would be.

    Raises:
        UsageError: ``url`` is none.
    """
    asked = [Endpoint.parse(url)] if url else list(endpoints)
    there = [endpoint for endpoint in asked if accepts(endpoint)]
    if not there:
        places = " and ".join(str(endpoint) for endpoint in asked)
        if url:
            advice = "Start the server, or check host, port and firewall."
            return [problem("server", f"nothing accepts connections at {places}", advice, expected="a running server")]
        return [info("server", f"none answers at {places}", "convoy doctor --url URL looks at another one.")]
    doors = [open_door(endpoint) for endpoint in there]
    try:
        return _look(world, known, doors, metrics_port, named=url is not None)
    finally:
        for door in doors:
            door.close()


def _look(
    world: World, known: VulnerabilityList, doors: Sequence[HttpDoor | GrpcDoor], metrics_port: int, *, named: bool
) -> list[Finding]:
    findings, open_doors, version = [], [], ""
    for door in doors:
        said = door.metadata()
        if said.reason:
            judge = problem if named else info
            advice = "Give the URL of a Triton server." if named else "Not looked at further; give --url if it is a server."
            findings.append(judge(str(door.endpoint), said.reason, advice))
        else:
            open_doors.append(door)
            version = version or said.version
    if not open_doors:
        return findings
    where = " and ".join(str(door.endpoint) for door in open_doors)
    reach = find_reach(world, [door.endpoint for door in open_doors])
    findings += [_version(known, version, where, reach), _bound(reach), *_tls(open_doors, reach)]
    findings += [_exposed(probe, [door.ask(probe) for door in open_doors], reach) for probe in PROBES]
    return [*findings, *_metrics(open_doors[0].endpoint, metrics_port, reach)]


def find_reach(world: World, endpoints: Sequence[Endpoint]) -> Reach:
    """Who can connect to the server at ``endpoints``, as the widest of them tells."""
    proc, found = world.root / "proc", []
    for endpoint in endpoints:
        if not _is_loopback(endpoint.host):
            found.append(Reach(True, f"{endpoint.host} is an address of the network"))
            continue
        sockets = [listener for listener in listeners(proc) if listener.port == endpoint.port]
        if not sockets:
            found.append(Reach(None, f"/proc does not tell who listens on port {endpoint.port}"))
        for listener in sockets:
            public = listener.reach != "this machine"
            found.append(Reach(public, f"port {endpoint.port} is bound to {listener.address}", holder(proc, listener)))
    order = {True: 0, None: 1, False: 2}
    widest = min(found, key=lambda reach: order[reach.public])
    return Reach(widest.public, widest.words, next((reach.process for reach in found if reach.process), None))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _version(known: VulnerabilityList, version: str, where: str, reach: Reach) -> Finding:
    try:
        container = known.container_of(version)
    except ValueError:
        return warning(
            "version", f"{where} says that it is version {version!r}", "Look at what runs there.", expected="such as 2.51.0"
        )
    if container is None:
        return ok("version", f"Triton {version} at {where}, newer than the list of {known.date}: none known")
    found, said = known.of("triton", container), f"Triton {version} (container {container}) at {where}"
    if not found:
        return ok("version", f"{said}: none known")
    text = f"{said} has {describe(found)}"
    if reach.public:
        advice = f"Replace it by container {known.floor} or newer, or {_BIND[0].lower()}{_BIND[1:]}"
        return problem("version", text, advice, expected=f"{known.floor} or newer where others can connect", sources=sources(found))
    return warning("version", text, "Keep it on 127.0.0.1, for callers that you trust.", sources=sources(found))


def _bound(reach: Reach) -> Finding:
    if reach.public is None:
        return info("reach", f"{reach.words}: whether others can connect is unknown", "Look at `sudo ss -ltnp`.")
    if reach.public:
        return warning(
            "reach",
            f"{reach.words}: others can connect",
            f"{_BIND} Where others shall connect, put a proxy with TLS and authentication before it.",
            expected="127.0.0.1 alone, as Triton asks nobody who they are",
        )
    return ok("reach", f"this machine alone ({reach.words})")


def _tls(doors: Sequence[HttpDoor | GrpcDoor], reach: Reach) -> list[Finding]:
    plain = [str(door.endpoint) for door in doors if not door.endpoint.secure]
    if not plain:
        return [ok("TLS", "the connection is encrypted")]
    if not reach.public:
        return [info("TLS", "none, which is fine on this machine alone")]
    return [
        warning(
            "TLS",
            f"none at {' and '.join(plain)}: images and answers can be read and changed on the way",
            "gRPC: --grpc-use-ssl=1 --grpc-server-cert=... --grpc-server-key=...; Triton's REST has none: put a proxy before it.",
            expected="an encrypted connection",
        )
    ]


def _exposed(probe: Probe, replies: Sequence[Reply], reach: Reach) -> Finding:
    shown = "; ".join(reply.shown for reply in replies)
    if not any(reply.state == "open" for reply in replies):
        if any(reply.state == "unknown" for reply in replies):
            return info(probe.name, f"unknown ({shown})")
        return ok(probe.name, f"{'restricted' if any(reply.state == 'restricted' for reply in replies) else 'not there'} ({shown})")
    found = f"open ({shown}): whoever connects can {probe.harm}"
    if probe.category == "model-repository":
        mode = control_mode(reach.process)
        if mode in ("none", "poll"):
            return info(
                probe.name, f"load and unload are refused (--model-control-mode={mode}); the list of models is open ({shown})"
            )
        found += f" (--model-control-mode={mode})" if mode else ", where its --model-control-mode is explicit"
    if not probe.grave or not reach.public:
        return info(probe.name, found)
    advice = _RESTRICT.format(categories=probe.category)
    return problem(probe.name, found, advice[0].upper() + advice[1:], expected="closed to others")


def control_mode(process: Process | None) -> str:
    """Triton's ``--model-control-mode`` as its command line has it; empty where that cannot be seen."""
    if process is None or process.name != "tritonserver":
        return ""
    for before, word in zip(("", *process.words), process.words, strict=False):
        if match := _MODE.fullmatch(word):
            return match[1]
        if before == "--model-control-mode":
            return word
    return "none"


def _metrics(endpoint: Endpoint, port: int, reach: Reach) -> list[Finding]:
    import httpx

    metrics = Endpoint("http", endpoint.host, port)
    if not accepts(metrics):
        return []
    try:
        response = httpx.get(f"{metrics}/metrics", timeout=1.0, trust_env=False)
    except httpx.HTTPError:
        return []
    if response.status_code != 200 or "nv_" not in response.text:
        return []
    found = f"open (GET {metrics}/metrics: 200): whoever connects can see models, load and the GPU's state"
    if reach.public:
        return [warning("metrics", found, "--metrics-address=127.0.0.1, or a firewall that lets only Prometheus in.")]
    return [info("metrics", found)]
