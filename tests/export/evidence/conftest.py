"""Whole bundles of every kind: passed, failed, undecided, int8, with ten classes or a thousand, sealed as an export seals them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convoy.contract.agreement import Tolerance
from convoy.contract.bundle import GOLDENS_FILE, MODEL_FILE, Bundle
from convoy.contract.goldens import Goldens
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Accuracy, Manifest, Preprocessing, TensorSpec, TrainingFacts
from convoy.contract.validation import (
    Check,
    ClassScore,
    Fault,
    Flip,
    LayerError,
    OutputErrors,
    PrecisionFacts,
    Speed,
    ValidationReport,
    WorstImage,
    sum_up,
)

MakeBundle = Callable[..., Bundle]


def a_model(n_classes: int, side: int) -> bytes:
    """A true ONNX classifier: mean of the pixels times a weight a class."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "axis"], ["column"]),
            helper.make_node("MatMul", ["column", "weight"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 1])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_classes]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", n_classes]),
        ],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("weight", TensorProto.FLOAT, [1, n_classes], np.linspace(0, 0.01, n_classes)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def checks_of(verdict: str) -> list[Check]:
    limits = {1: (1.52e-4, 9.54e-6), 7: (1.52e-4, 1.1e-5), 64: (1.52e-4, 1.3e-5)}
    checks = [
        Check(name="file loads everywhere", verdict="passed", expected="opset <= 21, IR <= 10", found="opset 17, IR 8, 5 nodes"),
        Check(name="enough evidence", verdict="passed", expected="at least 100 real images", found="10,000 images"),
    ]
    for output in ("logits", "probabilities"):
        for batch, (limit, measured) in limits.items():
            checks.append(
                Check(
                    name=f"{output}, batches of {batch}, CPUExecutionProvider",
                    verdict="passed",
                    expected=f"finite, |actual - expected| <= {limit} + 1.91e-06 |expected|, top-1 equal",
                    found=f"256 images, max_abs_diff {measured}, 0 not finite, 0 outside, top-1 differs on 0",
                    limit=limit,
                    measured=measured,
                )
            )
    checks.append(
        Check(
            name="operators in the reference evaluator",
            verdict="uncovered",
            expected="each operator runs in the ONNX reference evaluator",
            found="com.example.Swish has no reference",
        )
    )
    if verdict == "failed":
        checks[4] = checks[4].model_copy(
            update={
                "verdict": "failed",
                "measured": 3.91,
                "found": "256 images, max_abs_diff 3.91, 0 not finite, 2,301 outside, top-1 differs on 41",
                "detail": "worst: image 17 of mnist test",
            }
        )
    if verdict == "undecided":
        checks[1] = checks[1].model_copy(update={"verdict": "undecided", "found": "12 images", "detail": "needs 88 images more"})
    return checks


def report_of(
    verdict: str = "passed", *, n_classes: int = 10, n_layers: int = 28, int8: bool = False, label: str | None = None
) -> ValidationReport:
    """A report of the given verdict, with every section filled in."""
    rng = np.random.default_rng(0)
    labels = labels_of(n_classes, label)
    expected = rng.dirichlet(np.full(min(n_classes, 10), 0.5))
    expected[::-1].sort()
    actual = np.roll(expected, 1) if verdict == "failed" else expected + rng.normal(0, 1e-6, len(expected))
    edges = tuple(float(edge) for edge in np.linspace(-9, -2 if verdict != "failed" else 1, 29))
    counts = tuple(int(count) for count in 1e5 * np.exp(-(((np.arange(28) - 11) / 4) ** 2)))
    errors = rng.lognormal(np.log(2e-7), 0.5, n_layers) * np.linspace(1, 4, n_layers)
    if verdict == "failed":
        errors[n_layers // 3 :] *= 1e5
    ops = ("Conv", "Relu", "MaxPool", "Add", "Gemm")
    layers = tuple(
        LayerError(
            node=f"node_{ops[index % 5].lower()}_{index}",
            op_type=ops[index % 5],
            module=f"network.layer{index // 8}.{index % 8}.{ops[index % 5].lower()}",
            output=f"value_{index}",
            max_abs_diff=float(error * 3),
            scale=3.0,
        )
        for index, error in enumerate(errors)
    )
    fault = Fault(
        node=layers[n_layers // 3].node,
        op_type=layers[n_layers // 3].op_type,
        module=layers[n_layers // 3].module,
        output=layers[n_layers // 3].output,
        max_abs_diff=2.41,
        allowed=3.1e-6,
        image="image 17 of mnist test",
        cause="Two channels of the weight are swapped: the outputs agree when they are swapped back.",
    )
    n_outputs = [
        OutputErrors(
            name=name,
            n_images=10_006,
            max_abs_diff=3.91 if verdict == "failed" and name == "logits" else scale,
            n_truth_images=256,
            max_error=scale * 1.1,
            rms_error=scale / 9,
            own_max_error=scale,
            own_rms_error=scale / 10,
            histogram_log10_edges=edges,
            histogram_counts=counts,
        )
        for name, scale in (("logits", 1.1e-5), ("probabilities", 8.3e-7))
    ]
    checks = checks_of(verdict)
    return ValidationReport(
        model_name="lenet5",
        verdict=sum_up(checks),
        checks=tuple(checks),
        tolerances={"logits": Tolerance(atol=1.52e-4, rtol=1.91e-6), "probabilities": Tolerance(atol=1.47e-5, rtol=1.91e-6)},
        accuracy=Accuracy(split="mnist test", n=10_000, pytorch=0.9944, onnxruntime=0.9944),
        outputs=tuple(n_outputs),
        worst=WorstImage(
            name="image 17 of mnist test",
            true_label=labels[0],
            max_abs_diff=3.91 if verdict == "failed" else 1.1e-5,
            scores=tuple(
                ClassScore(label=name, expected=float(one), actual=float(max(0.0, other)))
                for name, one, other in zip(labels[:10], expected, actual, strict=True)
            ),
            reproducer="reproducer.npz" if verdict == "failed" else "",
        ),
        layers=layers,
        fault=fault if verdict == "failed" else None,
        precision=int8_facts(labels) if int8 else None,
        versions={"convoy": "0.1.0", "torch": "2.15.0", "onnxruntime-gpu": "1.31.1"},
        machine="Intel Xeon, 2 cores, Linux",
    )


def int8_facts(labels: tuple[str, ...]) -> PrecisionFacts:
    return PrecisionFacts(
        precision="int8",
        split="mnist test",
        n=10_000,
        float32_accuracy=0.9944,
        accuracy=0.9937,
        accuracy_drop=0.0007,
        accuracy_drop_upper=0.0013,
        max_accuracy_drop=0.005,
        flips=tuple(
            Flip(
                index=37 * index,
                true_label=labels[index % len(labels)],
                before=labels[(index + index % 2) % len(labels)],
                after=labels[(index + 1) % len(labels)],
            )
            for index in range(23)
        ),
        kept_float32={"node_gemm_4": "its quantisation alone costs 0.4 % accuracy", "node_softmax": "outputs stay float32"},
        calibration="512 images of mnist train",
        float32_speed=Speed(
            size_bytes=248_113, latency_ms=0.081, throughput_ips=48_211.0, batch_size=64, provider="CPUExecutionProvider"
        ),
        speed=Speed(size_bytes=71_204, latency_ms=0.117, throughput_ips=31_020.0, batch_size=64, provider="CPUExecutionProvider"),
        remarks=("Slower here: this processor has no int8 dot product (VNNI).",),
    )


def labels_of(n_classes: int, label: str | None = None) -> tuple[str, ...]:
    names = [str(index) if n_classes == 10 else f"class {index}, of a longer name" for index in range(n_classes)]
    return (label or names[0], *names[1:])


def pixels_of(side: int = 28) -> Any:
    """A ring on black, uint8 (side, side, 1)."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side))) - (side - 1) / 2
    radius = np.sqrt((grid**2).sum(axis=0)) / side
    return (255 * np.exp(-(((radius - 0.3) / 0.06) ** 2))).astype(np.uint8)[..., None]


@pytest.fixture
def pixels() -> Any:
    return pixels_of()


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Seals a bundle under ``tmp_path``; what a report is made of goes to ``report_of``."""

    def make(name: str = "export", *, n_classes: int = 10, manifest_update: dict[str, Any] | None = None, **kinds: Any) -> Bundle:
        return seal(tmp_path / name, n_classes=n_classes, manifest_update=manifest_update, **kinds)

    return make


def seal(folder: Path, *, n_classes: int = 10, manifest_update: dict[str, Any] | None = None, **kinds: Any) -> Bundle:
    folder.mkdir(parents=True)
    side = 28
    (folder / MODEL_FILE).write_bytes(a_model(n_classes, side))
    Goldens.of_classes(
        image=pixels_of(side)[None],
        logits=np.zeros((1, n_classes), np.float32),
        probabilities=np.full((1, n_classes), 1 / n_classes, np.float32),
        label=np.zeros(1, np.int64),
    ).save(folder / GOLDENS_FILE)
    report = report_of(n_classes=n_classes, **kinds)
    manifest = Manifest(
        model_name="lenet5",
        labels=labels_of(n_classes, kinds.get("label")),
        image=ImageSpec(height_px=side, width_px=side, channels=1),
        preprocessing=Preprocessing(polarity="auto", scale=1 / 255, mean=(0.13,), std=(0.31,)),
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=(side, side, 1), value_range=(0, 255)),),
        outputs=(
            TensorSpec(name="logits", datatype="FP32", dims=(n_classes,)),
            TensorSpec(name="probabilities", datatype="FP32", dims=(n_classes,), value_range=(0, 1)),
        ),
        max_batch_size=64,
        precision="int8" if kinds.get("int8") else "fp32",
        opset_version=17,
        ir_version=8,
        weights_sha256="ab" * 32,
        training=TrainingFacts(
            run_id="lenet5-mnist-1", recipe="lenet5", dataset="mnist", seed=0, epochs=12, best_epoch=11, n_parameters=61_706,
            n_train=54_000, n_validation=6_000, n_test=10_000, validation_top1_error=0.0062, test_top1_error=0.0056,
        ),
        accuracy=report.accuracy,
        versions={"convoy": "0.1.0", "torch": "2.15.0"},
    ).model_copy(update=manifest_update or {})  # fmt: skip
    return Bundle.seal(folder, manifest, report)
