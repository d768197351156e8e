"""Take over weights that were trained on other data, and give the network a new head."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from convoy.contract.errors import ContractError, UsageError
from convoy.contract.manifest import Preprocessing
from convoy.training.networks.classifier import ImageClassifier
from convoy.training.recipes.recipe import Recipe, Transfer
from convoy.training.transfer.blocks import Blocks, find_blocks
from convoy.training.transfer.imagenet import USUAL_PREPROCESSING, imagenet_preprocessing, imagenet_weights
from convoy.training.transfer.plan import block_factors
from convoy.training.transfer.report import BlockTakeOver, NewTensor, TakeOver
from convoy.training.transfer.weights_file import Weights, read_weights

_log = logging.getLogger(__name__)

_LEAST_SHARE: Final = 0.5
"""Weights that fit fewer of the tensors outside the head are those of another network."""

_LEAST_SHARE_OF_FILE: Final = 0.8
"""A file of which fewer tensors fit holds a larger network of the kind: its layers do other work here."""

_COUNTER: Final = "num_batches_tracked"
"""Of batch norms: old files have none, and with a fixed momentum it decides nothing."""

# What torchvision's files call layers that torchvision's networks call otherwise today
_OLD_NAMES: Final = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)


@dataclass
class _Match:
    """Tensors of the network beside those among the weights, by the network's names."""

    taken: dict[str, Tensor] = field(default_factory=dict)
    summed: list[str] = field(default_factory=list)
    replaced: list[NewTensor] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def take_over(classifier: ImageClassifier, recipe: Recipe, weights: Path | None = None) -> TakeOver:
    """Load the weights that ``recipe.transfer`` asks for into a classifier with a head of its own classes.

    The head (the layer that gives the logits, and that of each auxiliary head) stays as it was built, at random, also where a
    layer of as many classes is among the weights: they are others. Everything else must fit by name and shape. A prefix that
    all names share (``module.``, ``_orig_mod.``, ``network.``, ``backbone.``) is taken off. Where the classifier takes grey images
    and the weights are for colour, the first filters are summed over the colours: they compute on grey what they computed on the
    same image in red, green and blue. On an error the classifier is as it was.

    Args:
        classifier: Freshly built.
        recipe: Says where the weights come from and what will stay frozen.
        weights: With ``weights=file``, the file or run folder; see ``read_weights``.

    Raises:
        UsageError: The recipe transfers nothing, the file is not there, or torchvision has no weights for the network.
        TrainingError: ImageNet weights are not here and cannot be downloaded.
        ContractError: The file is damaged or hostile, or its weights are not of this network.
    """
    transfer = recipe.transfer
    if transfer is None:
        raise UsageError(f"recipe {recipe.name!r} takes over no weights; the recipe `transfer` does, with --set backbone=NETWORK.")
    if (weights is not None) != (transfer.weights == "file"):
        found = "none" if weights is None else str(weights)
        raise UsageError(
            f"--weights FILE and --set weights=file go together; found weights={transfer.weights} and the file {found}."
        )
    if transfer.weights == "none":
        return TakeOver(weights="none")
    source = imagenet_weights(recipe) if weights is None else read_weights(weights)
    blocks = find_blocks(classifier.network, channels=len(classifier.preprocessing.facts.mean), image_size_px=recipe.image_size_px)
    expected = classifier.network.state_dict()
    match = _match(expected, _rename(source.tensors, expected), blocks.outputs)
    _check(match, source, expected, blocks, transfer)
    with torch.no_grad():
        for name, tensor in match.taken.items():
            expected[name].copy_(tensor)
    report = _report(classifier, source, match, blocks, recipe, transfer)
    for note in report.notes:
        _log.warning("%s", note)
    return report


def expected_preprocessing(recipe: Recipe, weights: Path | None = None) -> Preprocessing:
    """What the weights that ``recipe`` takes over saw: torchvision's of that network, a run's own, else what is usual for photos.

    Args:
        recipe: Has ``transfer``.
        weights: With ``weights=file``, the file or run folder.

    Raises:
        UsageError: The file is not there, or torchvision has no weights for the network.
        ContractError: The file is damaged or hostile.
    """
    if recipe.transfer is not None and recipe.transfer.weights == "imagenet":
        return imagenet_preprocessing(recipe)[0]
    seen = None if weights is None else read_weights(weights).preprocessing
    return USUAL_PREPROCESSING if seen is None else seen


def _rename(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the network's names: without the prefix whose removal lets most fit, and old names made new."""
    prefix = _prefix_of(found, expected)
    renamed: dict[str, Tensor] = {}
    for name, tensor in found.items():
        bare = name.removeprefix(prefix)
        for pattern, replacement in _OLD_NAMES:
            if bare not in expected:
                bare = pattern.sub(replacement, bare)
        renamed[bare] = tensor
    return renamed


def _prefix_of(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    prefixes = {""}
    for name in found:
        parts = name.split(".")[:-1]
        prefixes.update(".".join(parts[: i + 1]) + "." for i in range(len(parts)))
    return max(sorted(prefixes, key=len), key=lambda prefix: _n_fitting(found, expected, prefix))


def _n_fitting(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str) -> int:
    names = (name.removeprefix(prefix) for name in found if name.startswith(prefix))
    return sum(name in expected for name in names)


def _match(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], outputs: Sequence[str]) -> _Match:
    match = _Match()
    left = dict(found)
    for name, tensor in expected.items():
        given = left.pop(name, None)
        if name.rpartition(".")[0] in outputs:
            match.replaced.append(_new(name, tensor, given))
        elif given is None:
            if not name.endswith(_COUNTER):
                match.missing.append(name)
        elif given.shape == tensor.shape and given.is_floating_point() == tensor.is_floating_point():
            match.taken[name] = given
        elif given.ndim == 4 and given.shape[1] == 3 and (given.shape[0], 1, *given.shape[2:]) == tensor.shape:
            match.taken[name] = given.sum(dim=1, keepdim=True)
            match.summed.append(name)
        else:
            match.misfits.append(f"{name} is {_say(tensor)} in the network and {_say(given)} among the weights")
    for i, new in enumerate(match.replaced):
        if new.found is None and (old := _old_head(new, left)) is not None:
            match.replaced[i] = _new(new.name, expected[new.name], left.pop(old))
    match.unexpected = list(left)
    return match


def _old_head(new: NewTensor, left: Mapping[str, Tensor]) -> str | None:
    """What stands in the head's place under another name: the one tensor that differs in the number of classes alone."""
    kind = new.name.rpartition(".")[2]
    alike = [name for name, tensor in left.items() if name.rpartition(".")[2] == kind and tuple(tensor.shape[1:]) == new.shape[1:]]
    return alike[0] if len(alike) == 1 else None


def _new(name: str, tensor: Tensor, given: Tensor | None) -> NewTensor:
    return NewTensor(name=name, shape=tuple(tensor.shape), found=None if given is None else tuple(given.shape))


def _say(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check(match: _Match, source: Weights, expected: Mapping[str, Tensor], blocks: Blocks, transfer: Transfer) -> None:
    n_taken = sum(not name.endswith(_COUNTER) for name in match.taken)
    n_wanted = n_taken + len(match.missing) + len(match.misfits)
    if n_wanted and n_taken + len(match.misfits) < _LEAST_SHARE * n_wanted:
        raise ContractError(
            f"{source.source}: expected the weights of this network, found {n_taken} of its {n_wanted} tensors outside the head "
            f"({n_taken / n_wanted:.0%}). The network has {_some(expected)}; the weights have {_some(source.tensors)}. "
            "Is this the backbone that they were trained for (--set backbone=NETWORK)?"
        )
    prefix = _prefix_of(source.tensors, expected)
    n_own = sum(name.startswith(prefix) and not name.endswith(_COUNTER) for name in source.tensors)
    n_used = n_taken + len(match.misfits) + sum(new.found is not None for new in match.replaced)
    if n_used < _LEAST_SHARE_OF_FILE * n_own:
        raise ContractError(
            f"{source.source}: expected the weights of this network, found those of a larger one: {n_own - n_used} of its {n_own} "
            f"tensors have no place here, such as {_some(match.unexpected, 2)}. Is this the backbone that they were trained for "
            "(--set backbone=NETWORK)?"
        )
    if match.misfits:
        raise ContractError(
            f"{source.source}: expected other shapes in the head alone, found {len(match.misfits)} elsewhere: "
            f"{_some(match.misfits, 3, '; ')}. Is this the backbone that they were trained for (--set backbone=NETWORK), and the "
            "size of image (up to 64 pixels Convoy's networks have another first layer; vision transformers are made for one size: "
            "--set image_size_px=224)?"
        )
    bad = [name for name, tensor in match.taken.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ContractError(f"{source.source}: expected finite numbers, found others in {_some(bad)}.")
    frozen = blocks.row[: block_factors(len(blocks.row), transfer).count(0.0)]
    random = [
        name
        for name in match.missing
        if any(name in block.parameters or name.startswith(tuple(f"{module}." for module in block.modules)) for block in frozen)
    ]
    if random:
        raise ContractError(
            f"{source.source}: expected all tensors of the blocks that stay frozen, missing: {_some(random)}. They would "
            f"stay random: freeze fewer blocks than frozen_fraction={transfer.frozen_fraction:g} does, such as none: "
            "--set frozen_fraction=0."
        )


def _some(names: Iterable[str], n: int = 4, separator: str = ", ") -> str:
    listed = list(names)
    return separator.join(listed[:n]) + (f"{separator}... ({len(listed)} in all)" if len(listed) > n else "")


def _report(
    classifier: ImageClassifier, source: Weights, match: _Match, blocks: Blocks, recipe: Recipe, transfer: Transfer
) -> TakeOver:
    sizes = {name: parameter.numel() for name, parameter in classifier.network.named_parameters()}
    return TakeOver(
        weights=transfer.weights,
        source=source.source,
        sha256=source.sha256,
        n_tensors=len(match.taken),
        share=sum(size for name, size in sizes.items() if name in match.taken) / sum(sizes.values()),
        summed=tuple(match.summed),
        replaced=tuple(match.replaced),
        missing=tuple(match.missing),
        unexpected=tuple(match.unexpected),
        blocks=tuple(
            BlockTakeOver(
                name=block.name,
                n_parameters=sum(sizes[name] for name in block.parameters),
                n_taken_over=sum(sizes[name] for name in block.parameters if name in match.taken),
                factor=factor,
            )
            for block, factor in zip(blocks.row, block_factors(len(blocks.row), transfer), strict=True)
        ),
        notes=tuple(_notes(classifier, source, recipe)),
    )


def _notes(classifier: ImageClassifier, source: Weights, recipe: Recipe) -> Iterable[str]:
    then, now = source.preprocessing, classifier.preprocessing.facts
    if then is not None and len(then.mean) == len(now.mean):
        apart = max(abs(a - b) for a, b in zip((*then.mean, *then.std), (*now.mean, *now.std), strict=True))
        if apart > 0.01 or then.polarity != now.polarity:
            yield (
                f"the weights were trained on pixels normalised with mean {list(then.mean)}, std {list(then.std)} and polarity "
                f"{then.polarity}, this run has mean {list(now.mean)}, std {list(now.std)} and polarity {now.polarity}: features "
                "suffer until they have learnt anew (--set normalisation.mean and normalisation.std)"
            )
    if source.image_size_px is not None and recipe.image_size_px not in (None, source.image_size_px):
        yield (
            f"the weights were trained on images of {source.image_size_px} pixels, the recipe has {recipe.image_size_px} "
            f"(--set image_size_px={source.image_size_px})"
        )
