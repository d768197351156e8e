"""docker-compose.yml against the specification, the server's own option list, and the code that it stands beside."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from compose_spec import PyOptions, parse_duration

Parse = Callable[[Mapping[str, str]], dict[str, Any]]
SERVERS = ("triton", "triton-cpu")
SCORERS = {"score": "triton", "score-cpu": "triton-cpu"}


@pytest.fixture(scope="session")
def server_options() -> frozenset[str]:
    """Every option that ``tritonserver --help`` lists, as the wheel's server prints it."""
    from importlib.util import find_spec

    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        pytest.skip("the Triton server is not installed")
    package = Path(spec.origin).parent
    asked = subprocess.run(
        [str(package / "tritonserver" / "bin" / "tritonserver"), "--help"],
        env={**os.environ, "LD_LIBRARY_PATH": str(package.parent / "nvidia_pytriton.libs")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,  # it prints its help and exits 1
    )
    options = frozenset(re.findall(r"^\s+(--[a-z-]+)", asked.stdout + asked.stderr, re.MULTILINE))
    assert "--model-repository" in options, asked.stderr
    return options


def flags(service: Mapping[str, Any]) -> dict[str, str]:
    program, *options = service["command"]
    assert program == "tritonserver"
    return dict(option.split("=", 1) for option in options)


def targets(service: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {volume["target"]: volume for volume in service["volumes"]}


def test_the_file_follows_the_compose_specification(services: dict[str, Any]) -> None:
    assert set(services) == {*SERVERS, *SCORERS}


def test_the_specification_check_refuses_an_unknown_key(compose_text: str) -> None:
    with pytest.raises(ValueError, match="helthcheck"):
        PyOptions(apply_merge=True).from_yaml("services: {triton: {image: a, helthcheck: {}}}")


def test_compose_up_alone_starts_the_gpu_server_only(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if not service.get("profiles")] == ["triton"]


def test_every_service_that_another_waits_for_is_enabled_with_it(services: dict[str, Any]) -> None:
    for name, server in SCORERS.items():
        awaited = services[name]["depends_on"]
        assert awaited == {server: {"condition": "service_healthy"}}
        assert services[server].get("healthcheck")
        profiles = set(services[server].get("profiles", []))
        assert not profiles or profiles & set(services[name]["profiles"])


@pytest.mark.parametrize("name", SERVERS)
def test_every_flag_is_in_the_servers_own_option_list(name: str, services: dict[str, Any], server_options: frozenset[str]) -> None:
    assert set(flags(services[name])) <= server_options


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_polls_a_read_only_repository_and_takes_no_control_requests(name: str, services: dict[str, Any]) -> None:
    options = flags(services[name])
    assert options["--model-control-mode"] == "poll"
    assert int(options["--repository-poll-secs"]) > 0
    assert targets(services[name])[options["--model-repository"]]["read_only"] is True


def test_the_repository_is_the_one_that_the_command_line_deploys_to(services: dict[str, Any], parse_compose: Parse) -> None:
    deploy = import_module("convoy.cli.deploy").command
    option = next(parameter for parameter in deploy.params if parameter.name == "repository")
    mounted = targets(services["triton"])["/models"]["source"]
    assert Path(mounted) == Path(str(option.default))
    elsewhere = parse_compose({str(option.envvar): "/elsewhere/models"})
    assert targets(elsewhere["triton"])["/models"]["source"] == "/elsewhere/models"


@pytest.mark.parametrize("name", SERVERS)
def test_the_ports_are_those_of_the_command_line_and_the_launcher(name: str, services: dict[str, Any]) -> None:
    serve = import_module("convoy.cli.serve").command
    defaults = {parameter.name: parameter.default for parameter in serve.params}
    launcher = inspect.signature(import_module("convoy.serving.triton").TritonServer).parameters
    options = flags(services[name])
    published = []
    for kind in ("http", "grpc", "metrics"):
        port = int(options[f"--{kind}-port"])
        assert defaults[f"{kind}_port"] == port
        assert launcher[f"{kind}_port"].default == port
        published.append(f"127.0.0.1:{port}:{port}")
    assert services[name]["ports"] == published


def test_address_and_ports_can_be_moved(parse_compose: Parse) -> None:
    moved = parse_compose(
        {"TRITON_BIND": "10.0.0.5", "TRITON_HTTP_PORT": "9000", "TRITON_GRPC_PORT": "9001", "TRITON_METRICS_PORT": "9002"}
    )
    assert moved["triton"]["ports"] == ["10.0.0.5:9000:8000", "10.0.0.5:9001:8001", "10.0.0.5:9002:8002"]


@pytest.mark.parametrize("name", SERVERS)
def test_the_image_is_one_pinned_release_at_or_above_the_floor(name: str, services: dict[str, Any]) -> None:
    found = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3", services[name]["image"])
    assert found is not None
    assert (int(found[1]), int(found[2])) >= (26, 7)


def test_the_image_can_be_overridden(parse_compose: Parse) -> None:
    assert parse_compose({"TRITON_IMAGE": "registry.example/triton:1"})["triton-cpu"]["image"] == "registry.example/triton:1"


def test_only_the_gpu_server_reserves_gpus(services: dict[str, Any]) -> None:
    devices = services["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert all("resources" not in service.get("deploy", {}) for name, service in services.items() if name != "triton")


def test_gpus_compute_float32_in_float32(services: dict[str, Any], parse_compose: Parse) -> None:
    assert str(services["triton"]["environment"]["NVIDIA_TF32_OVERRIDE"]) == "0"
    assert str(parse_compose({"NVIDIA_TF32_OVERRIDE": "1"})["triton"]["environment"]["NVIDIA_TF32_OVERRIDE"]) == "1"


@pytest.mark.parametrize("name", SERVERS)
def test_the_health_check_runs_a_tracked_script_that_is_mounted(
    name: str, services: dict[str, Any], tracked: frozenset[str]
) -> None:
    kind, program, script = services[name]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "bash")
    source = targets(services[name])[script]["source"]
    assert os.path.normpath(source) in tracked


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_may_finish_its_requests_before_it_is_killed(name: str, services: dict[str, Any]) -> None:
    grace_s = parse_duration(services[name]["stop_grace_period"])
    assert grace_s > float(flags(services[name])["--exit-timeout-secs"])


@pytest.mark.parametrize("name", SERVERS)
def test_readiness_may_be_lost_for_as_long_as_a_version_change_takes(name: str, services: dict[str, Any]) -> None:
    check = services[name]["healthcheck"]
    assert parse_duration(check["interval"]) * check["retries"] >= 30


@pytest.mark.parametrize(("name", "server"), SCORERS.items())
def test_scoring_calls_the_command_line_as_it_is(name: str, server: str, services: dict[str, Any]) -> None:
    program, subcommand, *options = services[name]["entrypoint"]
    assert (program, subcommand) == ("convoy", "score")
    command: click.Command = import_module("convoy.cli.score").command
    context = click.Context(command)
    values, rest, order = command.make_parser(context).parse_args([*options, *services[name]["command"]])
    arguments = [parameter for parameter in order if isinstance(parameter, click.Argument)]
    assert [values[argument.name] for argument in arguments] == services[name]["command"]
    assert rest == []
    assert f"grpc://{server}:{flags(services[server])['--grpc-port']}" in str(values["url"] if "url" in values else values["urls"])


@pytest.mark.parametrize("name", SCORERS)
def test_scoring_reads_and_writes_in_mounted_folders(name: str, services: dict[str, Any]) -> None:
    _model, source, result = services[name]["command"]
    folders = targets(services[name])
    assert folders[source]["read_only"] is True
    assert not folders[str(Path(result).parent)].get("read_only")


@pytest.mark.parametrize("name", SCORERS)
def test_a_run_that_fails_goes_on_by_itself_and_not_for_ever(name: str, services: dict[str, Any]) -> None:
    assert services[name]["deploy"] == {"restart_policy": {"condition": "on-failure", "max_attempts": 10}}
    assert parse_duration(services[name]["stop_grace_period"]) >= 30


def test_each_model_has_a_data_set_of_its_own(parse_compose: Parse) -> None:
    assert parse_compose({"CONVOY_MODEL": "resnet"})["score"]["command"] == ["resnet", "/images", "/scores/resnet"]


@pytest.mark.parametrize("name", SCORERS)
def test_the_client_image_is_built_from_a_tracked_file_and_bears_this_version(
    name: str, services: dict[str, Any], root: Path, tracked: frozenset[str]
) -> None:
    from convoy import __version__

    build = services[name]["build"]
    assert (root / build["context"]).resolve() == root
    assert build["dockerfile"] in tracked
    assert services[name]["image"] == f"convoy-client:{__version__}"


def test_no_service_can_gain_privileges(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")


def test_a_wrong_path_is_an_error_and_never_an_empty_folder(compose_text: str, services: dict[str, Any]) -> None:
    assert all(volume["type"] == "bind" for service in services.values() for volume in service["volumes"])
    assert compose_text.count("create_host_path: false") == 1
    assert compose_text.count("type: bind") == compose_text.count("bind: *existing") + compose_text.count("bind: &existing")


def test_every_variable_is_documented_with_its_default(root: Path, compose_variables: dict[str, str]) -> None:
    text = (root / "docs" / "deployment.md").read_text(encoding="utf-8")
    missing = [
        f"{name}: {default}"
        for name, default in compose_variables.items()
        if not re.search(rf"^\| `{name}` \| `{re.escape(default)}` \|", text, re.MULTILINE)
    ]
    assert missing == []


def test_every_documented_variable_is_read(root: Path, compose_variables: dict[str, str]) -> None:
    text = (root / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z0-9_]+)` \|", text, re.MULTILINE)) == set(compose_variables)
