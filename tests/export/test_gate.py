"""Test the tester: what is equal passes, and every fault that is put into the file is found."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from convoy.contract.validation import sum_up
from convoy.export import EvaluationSet
from convoy.export.gate.bounds import derive_bound, follow_logits
from convoy.export.gate.evidence import Exhibits, edge_images
from convoy.export.gate.gate import Border, Findings, run_gate
from convoy.export.gate.reference import TorchSource
from convoy.export.gate.runtime import usable_providers
from convoy.export.graph.exporting import to_onnx


def gate(case, model: onnx.ModelProto, evaluation: EvaluationSet | None = None) -> Findings:
    return judge(case, model.SerializeToString(), case.classifier, evaluation)


def judge(case, model: bytes, classifier: nn.Module, evaluation: EvaluationSet | None = None) -> Findings:
    border = Border(case.facts.image, case.facts.labels, case.facts.max_batch_size)
    return run_gate(model, TorchSource(classifier), evaluation or case.evaluation, border)


def failed(findings: Findings) -> list[str]:
    return [check.name for check in findings.checks if check.verdict == "failed"]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def edit_initializer(model: onnx.ModelProto, like: str, change: Callable[[np.ndarray], None]) -> None:
    initializer = next(tensor for tensor in model.graph.initializer if like in tensor.name)
    array = numpy_helper.to_array(initializer).copy()
    change(array)
    initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))


def test_an_unchanged_export_passes_every_check(case):
    findings = gate(case, to_onnx(case.classifier, case.facts.image).proto)
    assert sum_up(findings.checks) == "passed", findings.checks
    assert findings.accuracy is not None
    assert findings.accuracy.pytorch == findings.accuracy.onnxruntime
    names = " ".join(check.name for check in findings.checks)
    assert all(f"batches of {size}" in names for size in (1, 2, 7, 16))
    assert all(f"optimisation {level}" in names for level in ("disabled", "basic", "extended"))
    assert "in other company" in names
    assert "beside float64" in names


def test_one_weight_off_by_a_tenth_fails(case):
    model = to_onnx(case.classifier, case.facts.image).proto
    edit_initializer(model, "head.weight", lambda array: array.__setitem__((0, 0), array[0, 0] + 0.1))
    assert any(name.startswith("logits") for name in failed(gate(case, model)))


def test_a_nan_in_a_bias_fails(case):
    model = to_onnx(case.classifier, case.facts.image).proto
    edit_initializer(model, "head.bias", lambda array: array.__setitem__(1, np.nan))
    assert any(name.startswith("logits") for name in failed(gate(case, model)))


def test_a_nan_in_the_network_itself_fails_though_both_sides_agree(case):
    broken = copy.deepcopy(case.classifier)
    broken.head.bias.data[0] = float("nan")
    model = to_onnx(broken, case.facts.image).proto
    found = judge(case, model.SerializeToString(), broken)
    assert sum_up(found.checks) == "failed"


def test_swapped_outputs_fail(case):
    model = to_onnx(case.classifier, case.facts.image).proto
    first, second = model.graph.output
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = {first.name: second.name, second.name: first.name}.get(name, name)
    assert failed(gate(case, model))


def test_a_batch_axis_that_was_baked_in_fails(case):
    model = to_onnx(case.classifier, case.facts.image).proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.value_info[:]
    assert any("dynamic batch" in name for name in failed(gate(case, model)))


@pytest.mark.parametrize(("field", "value"), [("ir_version", 11), ("opset", 22)])
def test_a_file_that_older_servers_cannot_load_fails(case, field, value):
    model = to_onnx(case.classifier, case.facts.image).proto
    if field == "opset":
        model.opset_import[0].version = value
    else:
        model.ir_version = value
    check = next(check for check in gate(case, model).checks if check.name == "file loads everywhere")
    assert check.verdict == "failed"
    assert str(value) in check.found


def test_a_truncated_file_fails_without_an_exception(case):
    data = to_onnx(case.classifier, case.facts.image).proto.SerializeToString()
    found = judge(case, data[: len(data) // 2], case.classifier)
    assert sum_up(found.checks) == "failed"


def test_too_few_images_are_undecided_never_passed(case):
    few = EvaluationSet("noise", case.evaluation.images[:20], case.evaluation.labels[:20])
    findings = gate(case, to_onnx(case.classifier, case.facts.image).proto, few)
    assert sum_up(findings.checks) == "undecided"
    assert any("needs 100 images" in check.detail for check in findings.checks)


def test_tolerances_stay_near_float32(case):
    findings = gate(case, to_onnx(case.classifier, case.facts.image).proto)
    assert all(0 < tolerance.atol < 1e-3 for tolerance in findings.tolerances.values())


def test_goldens_hold_every_class_before_any_twice(case):
    chosen = case.evaluation.labels[case.evaluation.goldens()]
    assert len(chosen) == 16
    assert set(chosen[:3]) == {0, 1, 2}


def test_edge_images_are_what_they_say(case):
    black, white, pixel, checkers, noise = edge_images(case.facts.image)
    assert black.max() == 0
    assert white.min() == 255
    assert (pixel > 0).sum() == 1
    assert abs(int((checkers > 0).sum()) - checkers.size // 2) <= 1
    assert set(np.unique(noise)) == {0, 255}


@pytest.mark.parametrize("cast", ["default", "float", "to", "tensor"])
def test_the_float64_truth_is_float64_whatever_the_network_asks_for(case, cast):
    ways = {
        "default": lambda x: x / 255,
        "float": lambda x: x.float() / 255,
        "to": lambda x: x.to(torch.float32) / 255,
        "tensor": lambda x: x * torch.tensor(1 / 255),
    }

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = self.inner(ways[cast](image))
            seen.append(logits.dtype)
            return logits

    seen: list[torch.dtype] = []
    network = Own().eval()
    images = case.evaluation.images
    source = TorchSource(network)
    expected = source.float32(images, 16)["logits"]
    assert set(seen) == {torch.float32}
    seen.clear()
    truth = source.float64(images, 16).outputs["logits"]
    assert set(seen) == {torch.float64}
    assert 1e-8 < derive_bound(expected, truth).tolerance.atol < 1e-4
    assert torch.get_default_dtype() is torch.float32


class Company(nn.Module):
    """Answers that depend on the other images of the batch, a little."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(image)
        return logits + 0.01 * logits.mean(dim=0, keepdim=True)


def test_probabilities_may_move_as_far_as_their_logits_may_and_no_further():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1e5, (50, 6))  # so large that rounding decides between near classes
    truth[:, 1] = truth[:, 0]
    logits = derive_bound((truth * (1 + 1e-7)).astype(np.float32), truth)
    sharp = softmax(truth)
    bound = follow_logits(derive_bound(sharp.astype(np.float32), sharp), logits, float(np.abs(truth).max()))
    reach = logits.tolerance.atol + logits.tolerance.rtol * np.abs(truth)
    moved = np.abs(softmax(truth + rng.choice([-1, 1], truth.shape) * reach) - sharp).max()
    assert 0.1 < moved <= bound.tolerance.atol < 1

    near = derive_bound((truth / 1e5).astype(np.float32), truth / 1e5)
    assert follow_logits(derive_bound(sharp.astype(np.float32), sharp), near, 5.0).tolerance.atol < 1e-4


def test_a_file_whose_answers_depend_on_company_fails(case):
    model = to_onnx(Company(case.classifier).eval(), case.facts.image).proto
    assert any("in other company" in name for name in failed(gate(case, model)))


def test_a_network_whose_answers_depend_on_company_fails_though_the_file_does_as_it_does(case):
    network = Company(case.classifier).eval()
    found = judge(case, to_onnx(network, case.facts.image).proto.SerializeToString(), network)
    assert "logits, PyTorch in other company" in failed(found)


class AlwaysDropout(nn.Module):
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.classifier(image), p=0.1, training=True)


def test_dropout_that_stays_on_in_the_network_fails(case):
    model = to_onnx(case.classifier, case.facts.image).proto.SerializeToString()
    found = judge(case, model, AlwaysDropout(case.classifier).eval())
    assert "logits, PyTorch a second time" in failed(found)


def test_dropout_in_training_mode_in_the_file_fails(case):
    model = to_onnx(case.classifier, case.facts.image).proto
    head = next(node for node in model.graph.node if node.op_type == "Gemm")
    ratio = numpy_helper.from_array(np.float32(0.5), "ratio")
    training = numpy_helper.from_array(np.bool_(True), "training")
    model.graph.initializer.extend([ratio, training])
    index = list(model.graph.node).index(head)
    model.graph.node.insert(index, onnx.helper.make_node("Dropout", [head.input[0], "ratio", "training"], ["dropped"]))
    model.graph.node[index + 1].input[0] = "dropped"
    # ONNX Runtime's optimiser takes the node out: only the graph as it is written shows what it says.
    assert "logits, graph optimisation disabled, CPUExecutionProvider" in failed(gate(case, model))


def test_a_small_shift_that_the_tolerance_forgives_is_seen_beside_the_truth(case):
    clean = gate(case, to_onnx(case.classifier, case.facts.image).proto)
    shift = 0.6 * clean.tolerances["logits"].atol
    model = to_onnx(case.classifier, case.facts.image).proto
    edit_initializer(model, "head.bias", lambda array: array.__iadd__(np.float32(shift)))
    assert [name for name in failed(gate(case, model)) if name.startswith("logits")] == [
        "logits beside float64, CPUExecutionProvider"
    ]


def test_unlabelled_images_are_compared_without_an_accuracy(case):
    unlabelled = EvaluationSet("noise", case.evaluation.images, np.full(120, -1))
    findings = gate(case, to_onnx(case.classifier, case.facts.image).proto, unlabelled)
    assert sum_up(findings.checks) == "passed"
    assert findings.accuracy is None
    assert not any("accuracy" in check.name for check in findings.checks)


def test_a_network_that_knows_no_float64_is_held_to_a_stated_bound_and_said_to_be_uncovered(case):
    class Float32Alone(nn.Module):
        def __init__(self, classifier: nn.Module) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if torch.get_default_dtype() is torch.float64:
                raise NotImplementedError("no kernel for double")
            return self.classifier(image)

    model = to_onnx(case.classifier, case.facts.image).proto
    found = judge(case, model.SerializeToString(), Float32Alone(case.classifier).eval())
    truth = next(check for check in found.checks if check.name == "float64 truth")
    assert truth.verdict == "uncovered"
    assert "no kernel for double" in truth.found
    assert sum_up(found.checks) == "passed"
    edit_initializer(model, "head.weight", lambda array: array.__setitem__((0, 0), array[0, 0] + 0.1))
    assert failed(judge(case, model.SerializeToString(), Float32Alone(case.classifier).eval()))


def test_providers_that_this_machine_lacks_are_uncovered_not_passed(case):
    findings = gate(case, to_onnx(case.classifier, case.facts.image).proto)
    usable, missing = usable_providers()
    assert "CPUExecutionProvider" in usable
    verdicts = {check.name: check.verdict for check in findings.checks}
    assert all(verdicts[f"execution on {name}"] == "uncovered" for name in missing)
    assert not any("execution on" in name for name in verdicts if name.endswith(usable))


def test_the_worst_image_and_the_place_to_look_are_named(case):
    model = to_onnx(case.classifier, case.facts.image).proto
    edit_initializer(model, "head.bias", lambda array: array.__setitem__(1, array[1] + 5))
    findings = gate(case, model)
    assert findings.worst is not None
    assert findings.worst.max_abs_diff == pytest.approx(5, rel=1e-3)
    assert {score.label for score in findings.worst.scores} == {"one", "two", "three"}
    assert findings.failure is not None
    assert findings.failure.indices[0] == findings.worst_index
    details = {check.name: check.detail for check in findings.checks if check.verdict == "failed"}
    name = Exhibits.of(case.evaluation, case.facts.image).name(findings.worst_index)
    assert details["logits, batches of 16, CPUExecutionProvider"] == f"worst: {name}"
    # rows of a sample are named by their place in the whole set, edge images as such
    assert all(detail.startswith(("worst: image ", "worst: edge image: ")) for key, detail in details.items() if "batches" in key)


def test_errors_are_counted_whole(case):
    findings = gate(case, to_onnx(case.classifier, case.facts.image).proto)
    for errors in findings.outputs:
        assert sum(errors.histogram_counts) == errors.n_images * 3 == (120 + 5) * 3
        assert errors.own_max_error is not None
        assert errors.max_error is not None
        assert errors.rms_error <= errors.max_error


def test_tolerances_that_are_given_hold_for_real_images_alone(case):
    model = to_onnx(case.classifier, case.facts.image).proto
    source, border = TorchSource(case.classifier), Border(case.facts.image, case.facts.labels, case.facts.max_batch_size)
    tolerances = gate(case, model).tolerances
    found = run_gate(model.SerializeToString(), source, case.evaluation, border, tolerances=tolerances)
    assert sum_up(found.checks) == "passed"
    assert {errors.n_images for errors in found.outputs} == {120}
    edit_initializer(model, "head.bias", lambda array: array.__setitem__(1, array[1] + 5))
    found = run_gate(model.SerializeToString(), source, case.evaluation, border, tolerances=tolerances)
    assert failed(found)
