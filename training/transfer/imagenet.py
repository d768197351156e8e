"""torchvision's ImageNet weights: which, for which pixels, and how they get here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch

from convoy.contract.errors import DigestMismatchError, TrainingError, UsageError
from convoy.contract.files import sha256_file
from convoy.contract.manifest import Preprocessing
from convoy.training.recipes.recipe import Recipe
from convoy.training.transfer.weights_file import Weights, read_weights

_OWN_NAMES: Final[Mapping[str, str]] = MappingProxyType({"vgg-a": "vgg11", "vgg-b": "vgg13", "vgg-d": "vgg16", "vgg-e": "vgg19"})
"""Convoy's networks that torchvision has under another name."""

_OTHERS: Final = ("alexnet", "googlenet")
"""Convoy's networks that are not torchvision's of that name: Convoy's are those of the papers."""

_PREFIX: Final = "torchvision-"
_HASH: Final = re.compile(r"-([0-9a-f]{8,})\.")

# Both were ported from TensorFlow. torchvision turns pixels that were normalised as for its other networks into theirs where the
# weights are loaded; here what stands before the network says it at once.
_TENSORFLOW: Final = ("googlenet", "inception_v3")

USUAL_PREPROCESSING: Final = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What nearly all published networks for photos were trained with: mean and standard deviation of ImageNet's pixels."""


def imagenet_preprocessing(recipe: Recipe) -> tuple[Preprocessing, int]:
    """What the network of ``recipe`` saw on ImageNet: the normalisation of pixels, and height and width of the images.

    Raises:
        UsageError: There are no ImageNet weights for it.
    """
    name, weights = _find(recipe)
    transforms = weights.transforms()
    half = (0.5, 0.5, 0.5)
    mean, std = (half, half) if name in _TENSORFLOW else (tuple(transforms.mean), tuple(transforms.std))
    return Preprocessing(polarity="as-is", scale=1 / 255, mean=mean, std=std), int(transforms.crop_size[0])


def imagenet_weights(recipe: Recipe) -> Weights:
    """ImageNet weights for the network of ``recipe``, torchvision's: from torch.hub's cache, or downloaded into it.

    Of several, the first version (``IMAGENET1K_V1``): it was trained with plain cross entropy on plain labels, and such features
    carry over better to a new head than those of networks that were trained with smoothed or blended labels to score higher on
    ImageNet, as the second versions were (Kornblith, Shlens, Le 2019, Do Better ImageNet Models Transfer Better?; Kornblith,
    Chen, Lee, Norouzi 2021, Why Do Better Loss Functions Lead to Less Transferable Features?). The two networks that have no such
    version (regnet_y_128gf, vit_h_14) use torchvision's default.

    Raises:
        UsageError: There are none for it.
        TrainingError: They are not in the cache and cannot be downloaded.
        DigestMismatchError: The file is not the one that its name says.
        ContractError: The file holds no weights.
    """
    _, weights = _find(recipe)
    path = _fetch(weights.url)
    # torch.hub checks what it downloads, not what it finds in its cache
    expected, actual = _HASH.search(path.name), sha256_file(path)
    if expected is not None and not actual.startswith(expected[1]):
        raise DigestMismatchError(
            f"{path}: expected a file whose SHA-256 begins with {expected[1]}, found {actual[:16]}.... Remove it: it was cut short "
            "or changed, and is downloaded again."
        )
    preprocessing, image_size_px = imagenet_preprocessing(recipe)
    return replace(read_weights(path), source=str(weights), preprocessing=preprocessing, image_size_px=image_size_px)


def _find(recipe: Recipe) -> tuple[str, Any]:
    """What torchvision calls the network, and its weights."""
    from torchvision import models

    name = _OWN_NAMES.get(recipe.network, recipe.network)
    if recipe.network in _OWN_NAMES and recipe.architecture.batch_norm == "conv-bn-relu":
        name = f"{name}_bn"
    bare = name.removeprefix(_PREFIX)
    if name in _OTHERS or bare not in models.list_models(module=models):
        instead = f"--set backbone={_PREFIX}{name} takes torchvision's network of that name, " if name in _OTHERS else ""
        raise UsageError(
            f"weights=imagenet: torchvision has no weights for the network {recipe.network!r}; {instead}--set backbone=resnet50 "
            "one that has, --weights FILE takes weights from a file."
        )
    offered = models.get_model_weights(bare)
    first = offered.__members__.get("IMAGENET1K_V1")
    return bare, offered.DEFAULT if first is None else first


def _fetch(url: str) -> Path:
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        return path
    expected = _HASH.search(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # written aside and renamed; its bar is drawn on stderr
        torch.hub.download_url_to_file(url, str(path), hash_prefix=None if expected is None else expected[1])
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), a full disk, a wrong digest
        reason = " ".join(str(error).split()).removesuffix(".")
        raise TrainingError(
            f"{url}: expected to download the ImageNet weights, which {path} has not; it failed: {reason}. Put the file there, "
            "name one with --weights FILE, or train from scratch with --set weights=none."
        ) from error
    return path
