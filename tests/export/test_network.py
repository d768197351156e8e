"""What does not fit is said in one sentence, before torch or numpy say it in many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from convoy.contract.errors import ExportError, UsageError
from convoy.export import EvaluationSet, export_classifier


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, change) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, image: torch.Tensor):
        return self.change(self.inner, image)


def test_a_network_that_takes_floats_is_told_what_a_network_takes(case, tmp_path):
    floats = nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).eval()
    message = r"raw pixels, uint8 of shape \(N, 12, 12, 1\), scales them itself.*fails: RuntimeError"
    with pytest.raises(ExportError, match=message) as told:
        export_classifier(floats, case.facts, case.evaluation, tmp_path / "out")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda net, image: (net(image), 1), "found tuple"),
        (lambda net, image: net(image)[:, :2], r"3 labels.*found torch.float32 \(2, 2\)"),
        (lambda net, image: net(image).argmax(1), r"found torch.int64 \(2,\)"),
    ],
)
def test_a_network_that_gives_something_else_is_told_what_was_found(case, tmp_path, change, found):
    with pytest.raises(ExportError, match=found):
        export_classifier(Wrapped(case.classifier, change).eval(), case.facts, case.evaluation, tmp_path / "out")


def test_what_is_no_module_is_refused(case, tmp_path):
    with pytest.raises(ExportError, match="found function"):
        export_classifier(lambda image: image, case.facts, case.evaluation, tmp_path / "out")


def test_a_network_that_looks_at_values_is_refused_in_one_line(case, tmp_path):
    def by_value(net, image):
        return net(image) if image.sum() > 5 else net(image) + 1

    with pytest.raises(ExportError, match="must not depend on the values") as told:
        export_classifier(Wrapped(case.classifier, by_value).eval(), case.facts, case.evaluation, tmp_path / "out")
    assert "\x1b" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_network_that_ends_in_its_own_softmax_does_not_pass(case, tmp_path):
    ended = Wrapped(case.classifier, lambda net, image: net(image).softmax(1)).eval()
    bundle = export_classifier(ended, case.facts, case.evaluation, tmp_path / "out")
    assert bundle.report.verdict == "failed"
    assert "last softmax" in bundle.report.why()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 12, 12, 1), np.uint8), np.zeros(2, np.int64), r"each of 3 images, found int64 \(2,\)"),
        (np.zeros((3, 12, 12, 1), np.uint8), [0, 1, 2], "numpy array, found list"),
        (np.zeros((3, 12, 12, 1), np.uint8), np.array(["a", "b", "c"]), "whole number"),
        (torch.zeros(3, 12, 12, 1), np.zeros(3, np.int64), "numpy array, found Tensor"),
        (np.zeros((3, 12, 12, 1), np.float32), np.zeros(3, np.int64), "raw pixels, uint8"),
        (np.zeros((0, 12, 12, 1), np.uint8), np.zeros(0, np.int64), "found none"),
    ],
)
def test_evaluation_images_and_labels_are_checked(images, labels, message):
    with pytest.raises(UsageError, match=message):
        EvaluationSet("split", images, labels)


def test_labels_that_name_no_class_are_refused(case, tmp_path):
    beyond = EvaluationSet("split", case.evaluation.images, case.evaluation.labels + 1)
    with pytest.raises(UsageError, match=r"from 0 to 2.*found 1 to 3"):
        export_classifier(case.classifier, case.facts, beyond, tmp_path / "out")
    with pytest.raises(UsageError, match="each another"):
        export_classifier(case.classifier, replace(case.facts, labels=("a", "a", "b")), case.evaluation, tmp_path / "out")
