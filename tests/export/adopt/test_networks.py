"""A person's own nn.Module: found, given its weights, put behind the border."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convoy.contract.errors import DataError, ExportError, UsageError
from convoy.contract.image import ImageSpec
from convoy.export.adopt.foreign_classifier import image_of, wrap_torch
from convoy.export.adopt.networks import load_torch
from convoy.export.adopt.preprocess import parse_preprocess
from convoy.export.gate.reference import in_float64
from convoy.export.graph.exporting import to_onnx

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=3, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

def build():
    return Net()

def wants(argument):
    return Net()

ready = Net()
number = 3
"""
IMAGE = ImageSpec(height_px=8, width_px=9, channels=3)


@pytest.fixture
def code(tmp_path, monkeypatch):
    path = tmp_path / "their_code.py"
    path.write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def state(code) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return load_torch(f"{code}:build", None).module.state_dict()


@pytest.mark.parametrize("factory", ["their_code:build", "their_code:Net", "their_code:ready", "{path}:build"])
def test_a_factory_a_class_or_a_module_is_found(code, factory):
    loaded = load_torch(factory.format(path=code), None)
    assert isinstance(loaded.module, nn.Module)
    assert not any(module.training for module in loaded.module.modules())
    assert "no --weights" in " ".join(loaded.remarks)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("their_code", "package.module:factory"),
        ("their_code:", "package.module:factory"),
        ("their_code:nothing", "has no nothing"),
        ("no_such_code:build", "cannot be imported"),
        ("no_such_code.py:build", "no such file"),
        ("their_code:wants", "without arguments"),
        ("their_code:number", "found int"),
    ],
)
def test_what_is_no_factory_is_refused(code, factory, says):
    with pytest.raises(UsageError, match=says):
        load_torch(factory, None)


@pytest.mark.parametrize(
    ("wrap", "remark"),
    [
        (lambda state: state, None),
        (lambda state: {"state_dict": state, "epoch": 3}, "'state_dict'"),
        (lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}}, "'module.'"),
        (lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, "'_orig_mod.'"),
        (lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()}, "'backbone.'"),
        (lambda state: OrderedDict((name, tensor.half()) for name, tensor in state.items()), None),
    ],
)
def test_weights_are_found_in_a_checkpoint_and_stripped_of_prefixes(code, state, tmp_path, wrap, remark):
    torch.save(wrap(state), tmp_path / "weights.pt")
    loaded = load_torch("their_code:build", tmp_path / "weights.pt")
    for name, tensor in loaded.module.state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=1e-3, rtol=1e-3)
    assert any(remark in said for said in loaded.remarks) if remark else loaded.remarks == ()


def test_safetensors_are_read(code, state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_torch("their_code:build", tmp_path / "weights.safetensors")
    torch.testing.assert_close(dict(loaded.module.state_dict()), dict(state))


def test_weights_of_another_network_are_refused_with_names_and_counts(code, state, tmp_path):
    state = dict(state)
    state["extra.weight"] = state.pop("fc.bias")
    state["conv.weight"] = state["conv.weight"][:, :1]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        ExportError, match=r"1 missing \(fc\.bias\); 1 left over \(extra\.weight\); 1 of another shape \(conv\.weight"
    ):
        load_torch("their_code:build", tmp_path / "w.pt")


def test_weights_that_could_run_code_are_refused(code, tmp_path):
    torch.save(load_torch("their_code:build", None).module, tmp_path / "whole.pt")
    with pytest.raises(DataError, match=r"loading could run code.*It holds a their_code\.Net"):
        load_torch("their_code:build", tmp_path / "whole.pt")


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "cannot be read"), (b"not weights", "whole|cannot be read|run code"), (None, "no such")]
)
def test_damaged_weights_are_refused(code, tmp_path, content, says):
    for name in ("w.pt", "w.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=says):
            load_torch("their_code:build", tmp_path / name)


def test_a_checkpoint_without_weights_is_refused(code, tmp_path):
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="the keys epoch, loss"):
        load_torch("their_code:build", tmp_path / "w.pt")


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


class Shaped(Inner):
    """Gives its logits in one of the forms that libraries have."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor):
        logits = super().forward(x)
        return {
            "tensor": logits,
            "pooled": logits[..., None, None],
            "tuple": (logits, x.mean((2, 3))),
            "dict": {"logits": logits, "twice": logits * 2},
            "dataclass": Answer(logits, x),
            "nested": {"out": [x, logits]},
        }[self.form]


@pytest.fixture
def pixels(images) -> torch.Tensor:
    return torch.from_numpy(images)


@pytest.mark.parametrize("form", ["tensor", "pooled", "tuple", "dict", "dataclass", "nested"])
def test_logits_are_found_in_every_form_and_exported(pixels, run, form):
    preprocess = parse_preprocess("imagenet color=bgr")
    classifier = wrap_torch(Shaped(form).eval(), preprocess, IMAGE, 5)
    mean, std = torch.tensor(preprocess.mean).view(3, 1, 1), torch.tensor(preprocess.std).view(3, 1, 1)
    with torch.inference_mode():
        expected = Inner()((pixels.flip(3).permute(0, 3, 1, 2) / 255 - mean) / std)
        torch.testing.assert_close(classifier(pixels), expected, atol=1e-5, rtol=1e-5)
    if form in ("tensor", "dataclass"):
        found = run(to_onnx(classifier, IMAGE).proto, image=pixels.numpy())["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_preprocessing_is_float64_in_the_float64_truth(pixels):
    classifier = wrap_torch(Inner().eval(), parse_preprocess("imagenet"), IMAGE, 5).double()
    with in_float64(), torch.inference_mode():
        prepared = classifier.prepare(pixels)
        assert prepared.dtype == torch.float64
        assert classifier(pixels).dtype == torch.float64


def test_grey_images_for_three_channels_and_channels_last(images):
    grey = torch.from_numpy(images[..., :1])
    spec = ImageSpec(height_px=8, width_px=9, channels=1)
    classifier = wrap_torch(Inner().eval(), parse_preprocess("0..1 color=grey"), spec, 5)
    with torch.inference_mode():
        torch.testing.assert_close(classifier(grey), Inner()(grey.permute(0, 3, 1, 2).repeat(1, 3, 1, 1) / 255))

    class ChannelsLast(Inner):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.permute(0, 3, 1, 2))

    last = wrap_torch(ChannelsLast().eval(), parse_preprocess("0..1 layout=nhwc"), IMAGE, 5)
    with torch.inference_mode():
        expected = Inner()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        torch.testing.assert_close(last(torch.from_numpy(images)), expected)


def test_networks_without_one_tensor_of_logits_are_refused():
    with pytest.raises(ExportError, match=r"expected a network that gives 7 logits.*\(2, 5\)"):
        wrap_torch(Inner().eval(), parse_preprocess("0..1"), IMAGE, 7)

    class Two(Inner):
        def forward(self, x: torch.Tensor):
            return super().forward(x), super().forward(x)

    with pytest.raises(ExportError, match=r"found 2 .*Let forward"):
        wrap_torch(Two().eval(), parse_preprocess("0..1"), IMAGE, 5)


def test_a_network_that_takes_other_images_is_refused():
    with pytest.raises(ExportError, match="size, color and layout"):
        wrap_torch(nn.Sequential(nn.Flatten(), nn.Linear(10, 5)).eval(), parse_preprocess("0..1"), IMAGE, 5)


def test_the_image_must_be_told():
    with pytest.raises(UsageError, match="size=224"):
        image_of(parse_preprocess("imagenet"))
    assert image_of(parse_preprocess("mnist size=28")).dims == (28, 28, 1)
    assert image_of(parse_preprocess("imagenet size=224x192")).dims == (224, 192, 3)
