"""What the lint says, where, and how; that it says so exactly where the server refuses is the integration test's matter."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convoy.cli.program import program
from convoy.contract.errors import RepositoryError
from convoy.serving.repository import Repository
from convoy.serving.repository.lint import lint, onnx_file

CONFIG = """\
# the tiny one
backend: "onnxruntime"
max_batch_size: 8
input {
  name: "image"
  data_type: TYPE_UINT8
  dims: [ 4, 4, 1 ]
}
output [
  { name: "logits" data_type: TYPE_FP32 dims: [ 2 ] },
  { name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] }
]
"""

KINDS = "KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL"

Add = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def add(root: Path, make_onnx: Callable[..., bytes]) -> Add:
    """Adds a model: ``(name, config, *, file)``."""

    def make(name: str, config: str | None = CONFIG, *, file: bytes | None = None) -> Path:
        folder = root / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_bytes(make_onnx() if file is None else file)
        if config is not None:
            (folder / "config.pbtxt").write_text(config)
        return folder

    return make


def said(root: Path) -> list[str]:
    return [str(problem).replace(f"{root}/", "") for problem in lint(root)]


def convoy(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


def test_models_in_order_say_nothing(root, add):
    add("tiny")
    add("bare", None)
    assert said(root) == []


def test_every_unknown_name_of_a_text_is_found_at_once_with_what_was_meant(root, add):
    add("tiny", CONFIG.replace("max_batch_size", "max_batch_sise") + "instance_group { kind: KIND_GPU_ cuont: 2 }\n")
    assert said(root) == [
        "tiny/config.pbtxt:3: error: ModelConfig has no field 'max_batch_sise'. Did you mean 'max_batch_size'?",
        f"tiny/config.pbtxt:13: error: kind: expected one of {KINDS}, found KIND_GPU_. Did you mean 'KIND_GPU'?",
        "tiny/config.pbtxt:13: error: ModelInstanceGroup has no field 'cuont'. Did you mean 'count'?",
    ]


def test_rules_and_files_and_parameters_stand_at_their_lines(root, add):
    add(
        "tiny",
        CONFIG.replace('"logits"', '"logits" label_filename: "labels.txt"')
        + 'dynamic_batching {\n  preferred_batch_size: [ 4,\n    16 ]\n}\nparameters { key: "a" value { string_value: "b" } }\n',
    )
    add("other", CONFIG + '\nparameters { key: "no_such" }\nparameters { key: "execution_mode" value { string_value: "9" } }\n')
    found = said(root)
    assert [line.split(": ")[0] for line in found] == ["other/config.pbtxt:15", "tiny/config.pbtxt:10", "tiny/config.pbtxt:15"]
    assert "found '9'" in found[0]
    assert "labels.txt: No such file" in found[1]
    assert "expected at most max_batch_size, 8, found 16" in found[2]


def test_what_has_no_effect_is_a_warning(root, add):
    add("tiny", CONFIG + 'parameters { key: "no_such" value { string_value: "1" } }\n')
    assert said(root) == ["tiny/config.pbtxt:13: warning: parameter 'no_such' is unknown to this backend and has no effect."]


def test_the_border_is_held_against_the_configuration(root, add, make_onnx):
    add("tiny", file=make_onnx(n_labels=3))
    add("half", 'output { name: "logits" data_type: TYPE_FP16 }')
    assert said(root) == [
        "half/config.pbtxt:1: error: output 'logits': expected TYPE_FP32, as in the ONNX file, found TYPE_FP16.",
        "tiny/config.pbtxt:10: error: output 'logits': the configuration says dims [2], the ONNX file has [3].",
    ]


def test_a_file_that_is_missing_or_none_is_named(root, add):
    (add("gone") / "1" / "model.onnx").unlink()
    add("tiny", file=b"no ONNX file")
    found = said(root)
    assert found[0].startswith("gone/1/model.onnx: error: no such file.")
    assert found[1].startswith("tiny/1/model.onnx: error: ONNX Runtime cannot load it: ")
    assert len(found) == 2


def test_labels_are_counted(root, add):
    folder = add("tiny", CONFIG.replace('"logits"', '"logits" label_filename: "labels.txt"'))
    (folder / "labels.txt").write_text("a\nb\nc\n")
    (line,) = said(root)
    assert line.startswith("tiny/config.pbtxt:10: warning: label_filename: expected 2 lines")
    (folder / "labels.txt").write_text("a\nb")
    assert said(root) == []


def test_folders_that_are_no_models_are_named_and_hidden_ones_are_not(root, add):
    add("tiny")
    (root / "notes").mkdir()
    (root / ".git").mkdir()
    assert said(root) == ["notes: warning: neither a config.pbtxt nor a version folder: this is no model, and is passed over."]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('backend: "tensorrt"', "which the server of `convoy serve` does not have (NVIDIA's container has it)"),
        ('backend: "onxruntime"', "(nor is it known elsewhere)"),
        ('backend: "python"', "model.py: error: no such file"),
        ('name: "other"', "expected 'tiny', the folder's name, found 'other'"),
        ("model_metrics { }", "the server that `convoy serve` starts does not know it"),
        ("instance_group { kind: KIND_GPU }", "KIND_AUTO without gpus runs on any machine"),
        ("\xff", "expected a field"),
        ('max_batch_size: "8"', 'max_batch_size: expected a whole number, found "8". Remove the quotes.'),
        ("input { name: image }", "name: expected a string in quotes, found image."),
        ("input { optional: yes }", "optional: expected true or false, found yes."),
    ],
)
def test_what_else_is_said(root, add, config, expected):
    add("tiny", config)
    assert any(expected in line for line in said(root)), said(root)


def test_a_configuration_that_is_no_text_is_said_to_be_none(root, add):
    (add("tiny") / "config.pbtxt").write_bytes(b"\xff\xfe")
    (line,) = said(root)
    assert line.startswith("tiny/config.pbtxt: error: cannot be read: 'utf-8'")


def test_an_ensemble_of_a_model_that_fails_fails_with_it(root, add):
    add("tiny", CONFIG + "version_policy { latest { } }")
    maps = 'input_map { key: "image" value: "image" } output_map { key: "logits" value: "logits" }'
    tensors = (
        'input { name: "image" data_type: TYPE_UINT8 dims: [ 4, 4, 1 ] } output { name: "logits" data_type: TYPE_FP32 dims: [ 2 ] }'
    )
    (root / "both" / "1").mkdir(parents=True)
    (root / "both" / "config.pbtxt").write_text(
        f'ensemble_scheduling {{\n  step {{ model_name: "tiny" model_version: -1 {maps} }}\n}}\n'
        f'platform: "ensemble" max_batch_size: 8\n{tensors}'
    )
    assert "both/config.pbtxt:2: error: model_name: expected a model that is served, found 'tiny', which has errors." in said(root)
    (root / "tiny" / "config.pbtxt").write_text(CONFIG)
    assert said(root) == []


def test_a_deployed_model_is_in_order_until_its_file_changes(tmp_path, make_bundle, make_onnx):
    root = tmp_path / "deployed"
    Repository(root).deploy(make_bundle(make_onnx()))
    Repository(root).deploy(make_bundle(make_onnx(bias=2)))
    assert said(root) == []
    (root / "tiny" / "1" / "model.onnx").write_bytes(make_onnx(bias=3))
    (line,) = said(root)
    assert line.startswith("tiny/1/model.onnx: error: manifest.json names SHA-256 ")


def test_without_onnxruntime_the_rest_is_checked_and_said_so(root, add, monkeypatch):
    monkeypatch.setattr(onnx_file.util, "find_spec", lambda name: None)
    add("tiny", CONFIG + 'parameters { key: "no_such" }')
    assert [line.partition(": ")[2][:40] for line in said(root)] == [
        "warning: the ONNX file was not checked: ",
        "warning: parameter 'no_such' is unknown ",
    ]


def test_a_file_that_kills_its_reader_is_named_and_the_others_are_read(root, add, monkeypatch, tmp_path):
    package = tmp_path / "hostile"
    package.mkdir()
    (package / "reader.py").write_text(
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        f"    if 'second' in line: os.kill(os.getpid(), {int(signal.SIGSEGV)})\n"
        "    print(json.dumps({'inputs': [], 'outputs': [], 'optional': []}), flush=True)\n"
    )
    monkeypatch.setattr(onnx_file, "_PROBE", "reader")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]))
    found = onnx_file.read_borders([Path("first"), Path("second"), Path("third")])
    assert found[Path("first")].border is not None
    assert found[Path("third")].border is not None
    assert found[Path("second")].reason.startswith("the process that read it was ended by signal 11")


def test_a_file_that_takes_for_ever_is_given_up(monkeypatch, tmp_path):
    (tmp_path / "reader.py").write_text("import signal\nsignal.pause()\n")
    monkeypatch.setattr(onnx_file, "_PROBE", "reader")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = onnx_file.read_borders([Path("one")], timeout_s=0.5)
    assert "more than" in found[Path("one")].reason


def test_no_repository_is_said(tmp_path):
    with pytest.raises(RepositoryError, match="no such model repository"):
        lint(tmp_path / "none")


def test_the_command_fails_on_errors_and_not_on_warnings(root, add):
    folder = add("tiny", CONFIG + 'parameters { key: "no_such" }\n')
    checked = convoy("models", "--check", "--repository", root)
    assert checked.exit_code == 0
    assert f"{folder}/config.pbtxt:13: warning: " in checked.stdout
    assert "1 model checked: 0 errors, 1 warning." in checked.stdout
    (folder / "config.pbtxt").write_text(CONFIG.replace("size: 8", "size: -8"))
    checked = convoy("models", "--check", "--repository", root)
    assert isinstance(checked.exception, RepositoryError)
    assert checked.exception.exit_code == 1
    assert f"{folder}/config.pbtxt:3: error: max_batch_size: expected 0" in checked.stdout


def test_the_command_gives_problems_as_json(root, add):
    folder = add("tiny", CONFIG.replace("size: 8", "size: -8"))
    document = json.loads(convoy("models", "--check", "--json", "--repository", root).stdout)
    assert document["problems"] == [
        {
            "model": "tiny",
            "path": str(folder / "config.pbtxt"),
            "line": 3,
            "column": 1,
            "severity": "error",
            "message": "max_batch_size: expected 0 (no batching) or more, found -8. Set it to 0 or more.",
        }
    ]
    assert "problems" not in json.loads(convoy("models", "--json", "--repository", root).stdout)
