"""deploy/score-job.yaml against Kubernetes' own schema, and the code that it stands beside."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from convoy import __version__

kubernetes_validate = pytest.importorskip("kubernetes_validate")
VERSIONS = ("1.29", "1.33")


@pytest.fixture(scope="module")
def job(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "deploy" / "score-job.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def pod(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return dict(only)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_follows_the_schema(version: str, job: dict[str, Any]) -> None:
    kubernetes_validate.validate(job, version, strict=True)


def test_the_schema_refuses_an_unknown_key(job: dict[str, Any]) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**job, "spec": {**job["spec"], "backofLimit": 3}}, VERSIONS[-1], strict=True)


def test_a_run_that_fails_is_tried_again_and_only_one_writes(job: dict[str, Any], pod: dict[str, Any]) -> None:
    assert pod["restartPolicy"] == "OnFailure"
    assert job["spec"]["backoffLimit"] >= 6  # the lease of a pod that was killed lasts for a minute
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (1, 1)


def test_its_arguments_are_those_of_the_command_line(container: dict[str, Any]) -> None:
    subcommand, *words = container["args"]
    assert subcommand == "score"
    command: click.Command = import_module("convoy.cli.score").command
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(list(words))
    assert rest == []
    assert (values["model_name"], values["source"][:5], values["out"][:5]) == ("lenet5", "s3://", "s3://")
    assert values["urls" if "urls" in values else "url"] == ["grpc://triton:8001"]


def test_it_runs_this_versions_image_with_bounded_memory(container: dict[str, Any]) -> None:
    assert container["image"] == f"convoy-client:{__version__}"
    assert container["resources"]["requests"]["memory"]
    assert container["resources"]["limits"]["memory"]


def test_it_cannot_gain_privileges_and_writes_into_its_own_tmp_only(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    rules = container["securityContext"]
    assert (rules["allowPrivilegeEscalation"], rules["readOnlyRootFilesystem"]) == (False, True)
    assert rules["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert "emptyDir" in pod["volumes"][0]
