from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from convoy.contract.errors import DigestMismatchError, TrainingError, UsageError
from convoy.contract.files import sha256_file
from convoy.contract.image import ImageSpec
from convoy.training.networks import ImageClassifier, build_classifier
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.transfer import expected_preprocessing, imagenet, take_over
from convoy.training.transfer.imagenet import USUAL_PREPROCESSING, imagenet_preprocessing

PHOTO = ImageSpec(height_px=224, width_px=224, channels=3)
Hub = Callable[[Any, str], str]


def recipe_for(backbone: str, *more: str) -> Recipe:
    return get_recipe("transfer", assignments=[f"backbone={backbone}", "frozen_fraction=0", *more])


def build(recipe: Recipe, **facts: Any) -> ImageClassifier:
    preprocessing = USUAL_PREPROCESSING.model_copy(update=facts)
    return build_classifier(recipe.network, image=PHOTO, n_classes=6, preprocessing=preprocessing, architecture=recipe.architecture)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Puts a network's state dict into torch.hub's cache, where the weights of a network would be; gives its digest.

    The file has the name that torchvision gives it, but for the digest in it: that is the file's own.
    """
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()

    def put(state: nn.Module | dict[str, Tensor], name: str) -> str:
        path = tmp_path / "checkpoints" / "new.pth"
        torch.save(state.state_dict() if isinstance(state, nn.Module) else state, path)
        digest = sha256_file(path)
        path.rename(path.with_name(f"{name}-{digest[:8]}.pth"))
        found = imagenet._find

        def find(recipe: Recipe) -> tuple[str, Any]:
            bare, weights = found(recipe)

            class Local:
                url = f"https://nowhere.invalid/{name}-{digest[:8]}.pth"
                transforms = staticmethod(weights.transforms)

                def __str__(self) -> str:
                    return str(weights)

            return bare, Local()

        monkeypatch.setattr(imagenet, "_find", find)
        return digest

    return put


def test_weights_in_the_cache_are_taken_over_with_a_new_head(hub: Hub) -> None:
    torch.manual_seed(0)
    donor = models.resnet18(num_classes=1000)
    digest = hub(donor, "resnet18")
    recipe = recipe_for("resnet18")
    classifier = build(recipe)
    report = take_over(classifier, recipe)
    assert (report.weights, report.source, report.sha256) == ("imagenet", "ResNet18_Weights.IMAGENET1K_V1", digest)
    assert [(new.name, new.shape, new.found) for new in report.replaced] == [
        ("fc.weight", (6, 512), (1000, 512)),
        ("fc.bias", (6,), (1000,)),
    ]
    assert not report.missing
    assert not report.unexpected
    assert not report.notes
    donated, taken = donor.state_dict(), classifier.network.state_dict()
    assert all(torch.equal(donated[name], taken[name]) for name in donated if not name.startswith("fc."))


def test_a_file_in_the_cache_that_is_not_what_its_name_says_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub(models.resnet18(num_classes=2), "resnet18")
    path = next((tmp_path / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes()[:-1000])
    recipe = recipe_for("resnet18")
    with pytest.raises(DigestMismatchError, match=r"expected a file whose SHA-256 begins with [0-9a-f]{8}, found .* Remove it"):
        take_over(build(recipe), recipe)


def test_without_a_network_the_error_names_the_address_the_cache_and_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    recipe = recipe_for("resnet50")
    with pytest.raises(
        TrainingError,
        match=r"resnet50-0676ba61\.pth: expected to download .*resnet50-0676ba61\.pth has not; .*name resolution.*--weights FILE",
    ):
        take_over(build(recipe), recipe)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_download_is_checked_against_the_digest_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "proxy-error.html").write_bytes(b"<html>a proxy's page</html>")
    real = torch.hub.urlopen  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: real((tmp_path / "proxy-error.html").as_uri()))
    recipe = recipe_for("resnet18")
    with pytest.raises(TrainingError, match="invalid hash value"):
        take_over(build(recipe), recipe)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_names_of_old_files_are_understood(hub: Hub) -> None:
    torch.manual_seed(0)
    donor = models.densenet121(num_classes=1000).state_dict()
    old = {}
    for name, tensor in donor.items():
        for kind in ("norm", "relu", "conv"):
            name = name.replace(f".{kind}1.", f".{kind}.1.").replace(f".{kind}2.", f".{kind}.2.") if "denselayer" in name else name
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    hub(old, "densenet121")
    recipe = recipe_for("densenet121")
    classifier = build(recipe)
    report = take_over(classifier, recipe)
    assert not report.missing
    assert not report.unexpected
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(classifier.network.state_dict()[name], donor[name])


def test_other_pixels_than_those_of_imagenet_are_remarked(hub: Hub) -> None:
    hub(models.resnet18(num_classes=3), "resnet18")
    recipe = recipe_for("resnet18", "image_size_px=96")
    report = take_over(build(recipe, mean=(0.5, 0.5, 0.5)), recipe)
    assert len(report.notes) == 2
    assert "normalised with mean [0.485, 0.456, 0.406]" in report.notes[0]
    assert "--set image_size_px=224" in report.notes[1]


@pytest.mark.parametrize(
    ("backbone", "mean", "size"),
    [
        ("resnet50", 0.485, 224),
        ("vgg-d", 0.485, 224),
        ("efficientnet_v2_l", 0.5, 480),
        ("inception_v3", 0.5, 299),  # ported from TensorFlow, as the next
        ("torchvision-googlenet", 0.5, 224),
    ],
)
def test_the_pixels_of_imagenet_are_those_of_the_weights(backbone: str, mean: float, size: int) -> None:
    recipe = recipe_for(backbone)
    preprocessing, size_px = imagenet_preprocessing(recipe)
    assert (preprocessing.mean[0], size_px) == (mean, size)
    assert expected_preprocessing(recipe) == preprocessing


def test_turning_the_pixels_is_what_torchvision_does_inside_the_networks_from_tensorflow() -> None:
    preprocessing, _ = imagenet_preprocessing(recipe_for("inception_v3"))
    pixel = torch.rand(1, 3, 4, 4)
    usual = (pixel - torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    with torch.device("meta"):
        network = models.inception_v3(transform_input=True, init_weights=False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    assert torch.allclose(network._transform_input(usual), (pixel - mean) / std, atol=1e-6)


def test_the_first_version_is_taken_of_every_network_of_torchvision_that_has_one() -> None:
    for name in models.list_models(module=models):
        _, weights = imagenet._find(recipe_for(f"torchvision-{name}"))
        assert weights.name == ("IMAGENET1K_SWAG_E2E_V1" if name in ("regnet_y_128gf", "vit_h_14") else "IMAGENET1K_V1")
        assert imagenet._HASH.search(weights.url)


@pytest.mark.parametrize(
    ("network", "hint"), [("googlenet", "backbone=torchvision-googlenet"), ("cifar-resnet20", "--weights FILE")]
)
def test_networks_without_imagenet_weights_say_which_have(network: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"torchvision has no weights for the network '{network}'; .*{hint}"):
        imagenet_preprocessing(recipe_for(network))
