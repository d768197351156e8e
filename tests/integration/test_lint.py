"""The lint says error exactly where the real server refuses to load the model: a corpus of good and bad configurations."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from convoy.contract.errors import InvalidRequestError, ServerError, ServerFailureError
from convoy.serving.client import Client
from convoy.serving.repository.lint import Problem, lint
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration

INPUT = 'input [ { name: "image" data_type: TYPE_UINT8 dims: [ 4, 4, 1 ] } ]'
LOGITS = '{ name: "logits" data_type: TYPE_FP32 dims: [ 3 ] }'
OUTPUT = f'output [ {LOGITS}, {{ name: "probabilities" data_type: TYPE_FP32 dims: [ 3 ] }} ]'
GROUP = "instance_group [ { count: 1 kind: KIND_CPU } ]"
PLAIN = f'name: "NAME"\nbackend: "onnxruntime"\nmax_batch_size: 8\n{INPUT}\n{OUTPUT}\n{GROUP}\n'
STEP = (
    'model_name: "plain" model_version: -1 input_map { key: "image" value: "image" } output_map { key: "logits" value: "logits" }'
)
SCHEDULING = f"ensemble_scheduling {{ step [ {{ {STEP} }} ] }}"
ENSEMBLE = f'name: "NAME"\nplatform: "ensemble"\nmax_batch_size: 8\n{INPUT}\noutput [ {LOGITS} ]\n{SCHEDULING}\n'
PYTHON = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""


@dataclass(frozen=True)
class Case:
    """A model of the corpus.

    Attributes:
        name: Its name.
        config: Its ``config.pbtxt``; None for none.
        arrange: What to do in its folder beside that.
        differs: Why the lint and this server may disagree; empty where they may not.
    """

    name: str
    config: str | None
    arrange: Callable[[Path], object] | None = None
    differs: str = ""


def plain(*swaps: tuple[str, str], more: str = "") -> str:
    return swapped(PLAIN, swaps) + more


def ensemble(*swaps: tuple[str, str], more: str = "") -> str:
    return swapped(ENSEMBLE, swaps) + more


def swapped(text: str, swaps: tuple[tuple[str, str], ...]) -> str:
    for old, new in swaps:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def logits(more: str) -> tuple[str, str]:
    return LOGITS, LOGITS.replace(" }", f" {more} }}")


def image(more: str) -> tuple[str, str]:
    return "dims: [ 4, 4, 1 ]", f"dims: [ 4, 4, 1 ] {more}"


def warm(batch_size: int, sample: str, key: str = "image") -> str:
    return f'model_warmup [ {{ name: "w" batch_size: {batch_size} inputs {{ key: "{key}" value {{ {sample} }} }} }} ]'


ZEROS = "data_type: TYPE_UINT8 dims: [ 4, 4, 1 ] zero_data: true"
FROM_FILE = 'data_type: TYPE_UINT8 dims: [ 4, 4, 1 ] input_data_file: "sample"'
NO_BATCH = (
    ("max_batch_size: 8", "max_batch_size: 0"),
    ("[ 4, 4, 1 ]", "[ -1, 4, 4, 1 ]"),
    ("[ 3 ]", "[ -1, 3 ]"),
    ("[ 3 ]", "[ -1, 3 ]"),
)
CPU = "kind: KIND_CPU"


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def write(name: str, text: str) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return do


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


GOOD = [
    Case("plain", plain()),
    Case("bare", None),
    Case("empty", ""),
    Case("no_name", plain(('name: "NAME"', ""))),
    Case("no_backend", plain(('backend: "onnxruntime"', ""))),
    Case("platform", plain(('backend: "onnxruntime"', 'platform: "onnxruntime_onnx"'))),
    Case("half_said", plain((INPUT, 'input { name: "image" }'), (OUTPUT, 'output { name: "logits" }'))),
    Case("no_batching", plain(*NO_BATCH)),
    Case("one_output", plain((OUTPUT, f"output [ {LOGITS} ]"))),
    Case("odd_manner", plain((GROUP, "# one\ninstance_group: <count: 0x1; kind: KIND_CPU>; dynamic_batching<>")).replace('"', "'")),
    Case("batching", plain(more="dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 50 }")),
    Case(
        "priorities",
        plain(more="dynamic_batching { priority_levels: 3 default_priority_level: 2 priority_queue_policy { key: 1 } }"),
    ),
    Case("levels_unused", plain(more="dynamic_batching { default_priority_level: 2 }")),
    Case("order", plain(more="dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY } }")),
    Case("labels", plain(logits('label_filename: "labels.txt"')), write("labels.txt", "a\nb\nc\n")),
    Case("labels_short", plain(logits('label_filename: "labels.txt"')), write("labels.txt", "a\n")),
    Case("latest", plain(more="version_policy { latest { num_versions: 3 } }")),
    Case("specific", plain(more="version_policy { specific { versions: [ 1, 5 ] } }")),
    Case("warm", plain(more=warm(8, ZEROS))),
    Case("warm_file", plain(more=warm(1, FROM_FILE)), write("warmup/sample", "0123456789abcdef")),
    Case("cache", plain(more="response_cache { enable: true }")),
    Case("file_name", plain(more='default_model_filename: "net.onnx"'), rename("1/model.onnx", "1/net.onnx")),
    Case("reshape", plain(("dims: [ 4, 4, 1 ]", "dims: [ 16 ] reshape { shape: [ 4, 4, 1 ] }"))),
    Case("threads", plain(more='parameters { key: "intra_op_thread_count" value { string_value: "1" } }')),
    Case("accelerator", plain(more='optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }')),
    Case("twice", plain((INPUT, f"{INPUT} {INPUT}"))),
    Case(
        "python",
        'backend: "python" input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }',
        write("1/model.py", PYTHON),
    ),
    Case("ensemble", ensemble(), remove("1/model.onnx")),
    Case("ensemble_of_ensembles", ensemble(("plain", "ensemble")), remove("1/model.onnx")),
]

DELAY = "timeout_action: DELAY default_timeout_microseconds: 9"
PRIORITIES = "priority_levels: 2 default_priority_level: 1"
BAD = [
    Case("negative_batch", plain(("size: 8", "size: -1"))),
    Case("preferred_zero", plain(more="dynamic_batching { preferred_batch_size: 0 }")),
    Case("preferred_large", plain(more="dynamic_batching { preferred_batch_size: [ 4, 16 ] }")),
    Case("no_default_level", plain(more="dynamic_batching { priority_levels: 2 }")),
    Case("default_level_high", plain(more="dynamic_batching { priority_levels: 2 default_priority_level: 3 }")),
    Case("policy_level_zero", plain(more=f"dynamic_batching {{ {PRIORITIES} priority_queue_policy {{ key: 0 }} }}")),
    Case("policy_level_high", plain(more=f"dynamic_batching {{ {PRIORITIES} priority_queue_policy {{ key: 3 }} }}")),
    Case("order_and_priorities", plain(more=f"dynamic_batching {{ {PRIORITIES} preserve_ordering: true }}")),
    Case("order_and_delay", plain(more=f"dynamic_batching {{ preserve_ordering: true default_queue_policy {{ {DELAY} }} }}")),
    Case("cpu_with_gpus", plain((CPU, f"{CPU} gpus: 0"))),
    Case("model_with_gpus", plain((CPU, "kind: KIND_MODEL gpus: 0"))),
    Case("profile", plain((CPU, f'{CPU} profile: "0"'))),
    Case("input_without_name", plain(('name: "image"', ""))),
    Case("dims_zero", plain(("[ 4, 4, 1 ]", "[ 4, 0, 1 ]"))),
    Case("dims_wrong", plain(("[ 4, 4, 1 ]", "[ 5, 4, 1 ]"))),
    Case("dims_rank", plain(("[ 4, 4, 1 ]", "[ 4, 4 ]"))),
    Case("output_dims", plain(("[ 3 ]", "[ 4 ]"))),
    Case("type_wrong", plain(("TYPE_UINT8", "TYPE_FP32"))),
    Case("type_unknown", plain(("TYPE_UINT8", "TYPE_FLOAT"))),
    Case("input_unknown", plain(('"image"', '"picture"'))),
    Case("input_too_many", plain((INPUT, f'{INPUT} input {{ name: "mask" data_type: TYPE_UINT8 dims: 4 }}'))),
    Case("output_unknown", plain(('"logits"', '"logit"'))),
    Case("batch_in_dims", plain(("[ 4, 4, 1 ]", "[ -1, 4, 4, 1 ]"))),
    Case("reshape_count", plain(logits("reshape { shape: [ 2 ] }"))),
    Case("reshape_to_nothing", plain(*NO_BATCH).replace("[ -1, 3 ]", "[ -1, 3 ] reshape { shape: [ ] }")),
    Case("format", plain(("dims: [ 4, 4, 1 ]", "dims: [ 4, 4 ] format: FORMAT_NCHW"))),
    Case("shape_tensor", plain(image("is_shape_tensor: true"))),
    Case("ragged", plain(image("allow_ragged_batch: true"))),
    Case("labels_missing", plain(logits('label_filename: "labels.txt"'))),
    Case("no_version_named", plain(more="version_policy { specific { } }")),
    Case("version_missing", plain(more="version_policy { specific { versions: [ 7 ] } }")),
    Case("latest_none", plain(more="version_policy { latest { } }")),
    Case("warm_large", plain(more=warm(9, ZEROS))),
    Case("warm_unknown", plain(more=warm(1, ZEROS, "picture"))),
    Case("warm_type", plain(more=warm(1, ZEROS.replace("UINT8", "FP32")))),
    Case("warm_dims", plain(more=warm(1, ZEROS.replace("4, 4", "5, 4")))),
    Case("warm_open", plain(more=warm(1, ZEROS.replace("4, 4", "-1, 4")))),
    Case("warm_without_data", plain(more=warm(1, "data_type: TYPE_UINT8 dims: [ 4, 4, 1 ]"))),
    Case("warm_file_missing", plain(more=warm(1, FROM_FILE))),
    Case("warm_file_short", plain(more=warm(1, FROM_FILE)), write("warmup/sample", "012")),
    Case("cache_and_decoupled", plain(more="response_cache { enable: true } model_transaction_policy { decoupled: true }")),
    Case("cache_and_sequences", plain(more="response_cache { enable: true } sequence_batching { }")),
    Case("decoupled", plain(more="model_transaction_policy { decoupled: true }")),
    Case("sequence_preferred", plain(more="sequence_batching { oldest { preferred_batch_size: 16 } }")),
    Case("sequence_slots", plain(more="sequence_batching { direct { minimum_slot_utilization: 1.5 } }")),
    Case(
        "control_without_values",
        plain(more='sequence_batching { control_input { name: "S" control { kind: CONTROL_SEQUENCE_START } } }'),
    ),
    Case("two_schedulers", plain(more="sequence_batching { } dynamic_batching { }")),
    Case("field_unknown", plain(more="max_batch_sise: 4")),
    Case("field_twice", plain(more="max_batch_size: 4")),
    Case("kind_unknown", plain((CPU, "kind: KIND_TPU"))),
    Case("unclosed", plain(more="input {")),
    Case("other_name", plain(('"NAME"', '"other"'))),
    Case("backend_unknown", plain(("onnxruntime", "nothing"))),
    Case("platform_of_another", plain((INPUT, f'platform: "tensorrt_plan" {INPUT}'))),
    Case("platform_unknown", plain(('backend: "onnxruntime"', 'platform: "nothing"'))),
    Case("runtime_missing", plain(more='runtime: "x.so"')),
    Case("file_missing", plain(more='default_model_filename: "net.onnx"')),
    Case("file_elsewhere", plain(more='default_model_filename: "../1/model.onnx"')),
    Case("no_version", plain(), remove("1")),
    Case("version_by_name", plain(), rename("1", "v1")),
    Case("garbage", plain(), write("1/model.onnx", "no ONNX file")),
    Case("threads_many", plain(more='parameters { key: "intra_op_thread_count" value { string_value: "many" } }')),
    Case("agents", plain(more='model_repository_agents { agents { name: "checksum" } }')),
    Case("library_missing", plain(more='model_operations { op_library_filename: "/nowhere/x.so" }')),
    Case("batch_input_source", plain(more='batch_input { target_name: "n" data_type: TYPE_INT32 }')),
    Case("batch_output_target", plain(more='batch_output { target_name: "nothing" source_input: "image" }')),
    Case("newer_field", plain(more="model_metrics { }")),
    Case("steps_on_onnx", plain((GROUP, ""), more=SCHEDULING)),
    Case("ensemble_missing", ensemble(('"plain"', '"plane"')), remove("1/model.onnx")),
    Case("ensemble_version", ensemble(("version: -1", "version: 9")), remove("1/model.onnx")),
    Case("ensemble_input", ensemble(('key: "image"', 'key: "picture"')), remove("1/model.onnx")),
    Case("ensemble_output", ensemble(('key: "logits"', 'key: "logit"')), remove("1/model.onnx")),
    Case("ensemble_type", ensemble(("TYPE_UINT8", "TYPE_FP32")), remove("1/model.onnx")),
    Case("ensemble_dims", ensemble(("[ 4, 4, 1 ]", "[ 5, 4, 1 ]")), remove("1/model.onnx")),
    Case("ensemble_batch", ensemble(("size: 8", "size: 16")), remove("1/model.onnx")),
    Case("ensemble_unwritten", ensemble(('value: "logits"', 'value: "x"')), remove("1/model.onnx")),
    Case("ensemble_group", ensemble(more=GROUP), remove("1/model.onnx")),
    Case("ensemble_no_step", ensemble((SCHEDULING, "ensemble_scheduling { }")), remove("1/model.onnx")),
    Case("ensemble_of_nothing", ensemble((SCHEDULING, "")), remove("1/model.onnx")),
    Case("ensemble_of_itself", ensemble(('"plain"', '"ensemble_of_itself"')), remove("1/model.onnx")),
    Case("ensemble_of_a_bad_one", ensemble(('"plain"', '"dims_wrong"')), remove("1/model.onnx")),
]

DIFFERS = [
    Case(
        "labels_elsewhere",
        plain(logits('label_filename: "../labels/labels.txt"')),
        differs="2.51 reads labels outside the model's folder; newer servers refuse them, and so does the lint",
    ),
    Case("on_gpu", plain((CPU, "kind: KIND_GPU")), differs="the lint does not look at this machine's GPUs: a warning"),
    Case("auto_gpus", plain((CPU, "kind: KIND_AUTO gpus: 0")), differs="the lint does not look at this machine's GPUs: a warning"),
]
CASES = [*GOOD, *BAD, *DIFFERS]
INCOMPLETE = ("bare", "empty", "half_said")
"""What the server loads only where it completes configurations, which costs it two seconds for each model."""


@dataclass(frozen=True)
class Verdicts:
    """By model, why the server refused it (empty where it did not), and what the lint said."""

    refused: dict[str, str]
    problems: dict[str, list[Problem]]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory, write_tiny_model: Callable[..., Path]) -> Verdicts:
    onnx = write_tiny_model(tmp_path_factory.mktemp("tiny")) / "1" / "model.onnx"
    complete, incomplete = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("incomplete")
    write_case(complete, onnx, Case("anchor", PLAIN))
    refused: dict[str, str] = {}
    with TritonServer(complete, http_port=0, grpc_port=0, metrics_port=0) as server:
        cases = [case for case in CASES if case.name not in INCOMPLETE]
        for case in cases:
            write_case(complete, onnx, case)
        alone = [case for case in BAD if case.name.startswith("warm")]
        first = ["plain", "ensemble"]  # others need them
        for name in first:
            refused[name] = load(server.grpc_url, name)
        with ThreadPoolExecutor(4) as pool:
            others = [case.name for case in cases if case.name not in first and case not in alone]
            refused.update(zip(others, pool.map(lambda name: load(server.grpc_url, name), others), strict=True))
    for case in alone:
        refused[case.name] = start_with(tmp_path_factory.mktemp(case.name), onnx, case)
    for case in CASES:
        if case.name in INCOMPLETE:
            write_case(incomplete, onnx, case)
    with TritonServer(incomplete, http_port=0, grpc_port=0, metrics_port=0, keep_going=True) as server:
        refused.update({name: server.served.failures.get(name, "") for name in INCOMPLETE})
    problems: dict[str, list[Problem]] = {case.name: [] for case in (*CASES, Case("anchor", PLAIN))}
    for problem in (*lint(complete), *lint(incomplete)):
        problems[problem.model].append(problem)
    return Verdicts(refused, problems)


def load(url: str, name: str) -> str:
    """Why the server refuses a model; empty where it does not."""
    with Client(url) as client:
        try:
            client.load(name, timeout_s=60)
        except (InvalidRequestError, ServerFailureError) as error:  # no answer in time, or no server, is no verdict
            return str(error)
        if name not in ("plain", "ensemble"):
            client.unload(name)
    return ""


def start_with(repository: Path, onnx: Path, case: Case) -> str:
    """Why a server with this one model does not start: a bad warm-up ends Triton 2.51 itself now and then (signal 11)."""
    write_case(repository, onnx, case)
    try:
        with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0):
            return ""
    except ServerError as error:
        return str(error)


def write_case(repository: Path, onnx: Path, case: Case) -> None:
    folder = repository / case.name
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(onnx, folder / "1" / "model.onnx")
    if case.config is not None:
        (folder / "config.pbtxt").write_text(case.config.replace("NAME", case.name))
    if case.arrange is not None:
        case.arrange(folder)


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(BAD) >= 40
    assert len(GOOD) >= 15
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_what_the_server_loads_has_no_error(verdicts: Verdicts, case: Case) -> None:
    assert verdicts.refused[case.name] == ""
    assert [str(problem) for problem in verdicts.problems[case.name] if problem.severity == "error"] == []


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_what_the_server_refuses_has_an_error(verdicts: Verdicts, case: Case) -> None:
    assert verdicts.refused[case.name] != ""
    assert "error" in {problem.severity for problem in verdicts.problems[case.name]}


@pytest.mark.parametrize("name", ["levels_unused", "labels_short", "specific", "accelerator", "twice"])
def test_what_the_server_loads_and_does_not_do_has_a_warning(verdicts: Verdicts, name: str) -> None:
    assert {problem.severity for problem in verdicts.problems[name]} == {"warning"}


def test_newer_servers_refuse_labels_outside_the_model_and_so_does_the_lint(verdicts: Verdicts) -> None:
    assert verdicts.refused["labels_elsewhere"] == ""
    assert {problem.severity for problem in verdicts.problems["labels_elsewhere"]} == {"error"}


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU, on which the models load")
@pytest.mark.parametrize("name", ["on_gpu", "auto_gpus"])
def test_what_needs_a_gpu_is_a_warning_whatever_the_machine(verdicts: Verdicts, name: str) -> None:
    assert verdicts.refused[name] != ""
    assert {problem.severity for problem in verdicts.problems[name]} == {"warning"}
