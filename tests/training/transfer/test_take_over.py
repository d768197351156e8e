from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convoy.contract.errors import ContractError, UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.training.networks import ImageClassifier, build_classifier
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.run import TrainedRun
from convoy.training.run_folder import write_run
from convoy.training.transfer import Plan, TakeOver, expected_preprocessing, take_over

Make = Callable[..., Recipe]
Build = Callable[..., ImageClassifier]
Save = Callable[[Mapping[str, Any], Path], None]


def save_pt(tensors: Mapping[str, Any], path: Path) -> None:
    torch.save(dict(tensors), path)


def save_legacy(tensors: Mapping[str, Any], path: Path) -> None:
    torch.save(dict(tensors), path, _use_new_zipfile_serialization=False)


def save_nested(tensors: Mapping[str, Any], path: Path) -> None:
    torch.save({"best_prec1": 91.5, "state_dict": dict(tensors)}, path)


def save_deeply_nested(tensors: Mapping[str, Any], path: Path) -> None:
    torch.save({"epoch": 3, "model": {"model_state_dict": dict(tensors)}, "optimizer": {"lr": 0.1}}, path)


def state(classifier: ImageClassifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> set[str]:
    """The names under which both have the same bits."""
    return {name for name in left if torch.equal(left[name], right[name])}


@pytest.fixture
def donor(build: Build) -> ImageClassifier:
    """Trained on ten classes: batch norms with statistics of their own."""
    torch.manual_seed(1)
    classifier = build(n_classes=10)
    classifier.train()
    classifier(torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8))
    return classifier


@pytest.fixture
def fresh(build: Build) -> ImageClassifier:
    torch.manual_seed(2)
    return build(n_classes=6)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "network.", "backbone.body."])
@pytest.mark.parametrize("save", [save_pt, save_legacy, save_nested, save_deeply_nested, save_file])
def test_all_but_the_head_is_taken_over_bit_for_bit(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path, prefix: str, save: Save
) -> None:
    path = tmp_path / "weights"
    save({prefix + name: tensor for name, tensor in state(donor).items()}, path)
    head = fresh.network.get_parameter("linear.weight").detach().clone()
    report = take_over(fresh, transfer_recipe(), path)
    expected, actual = state(donor), state(fresh)
    taken = {name for name in expected if not name.startswith("linear.")}
    assert same({name: expected[name] for name in taken}, actual) == taken
    assert torch.equal(actual["linear.weight"], head)
    assert report.n_tensors == len(taken)
    assert not report.missing
    assert not report.unexpected
    assert [(new.name, new.shape, new.found) for new in report.replaced] == [
        ("linear.weight", (6, 4), (10, 4)),
        ("linear.bias", (6,), (10,)),
    ]


def test_the_report_counts_what_was_loaded_and_survives_json(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path
) -> None:
    from convoy.contract.files import sha256_bytes

    path = tmp_path / "donor.pth"
    save_pt({**state(donor), "ema.decay": torch.ones(1)}, path)
    before = state(fresh)
    recipe = transfer_recipe(frozen_fraction=0.4, layer_decay=0.5)
    report = take_over(fresh, recipe, path)
    parameters = dict(fresh.network.named_parameters())
    moved = {name for name in parameters if name not in same(before, state(fresh))}
    outside = sum(parameter.numel() for name, parameter in parameters.items() if not name.startswith("linear."))
    assert report.source == "donor.pth"
    assert report.sha256 == sha256_bytes(path.read_bytes())
    assert report.unexpected == ("ema.decay",)
    assert report.share == outside / fresh.n_parameters
    assert sum(block.n_taken_over for block in report.blocks) == outside
    assert sum(block.n_parameters for block in report.blocks) == fresh.n_parameters
    assert {name for name in moved if name.endswith("conv1.weight")}  # it did load
    plan = Plan(fresh, recipe)
    assert [block.factor for block in report.blocks] == [0, 0, 0.5**3, 0.5**2, 0.5, 1]
    assert all(plan.factor(f"network.{block.name}.conv2.weight") == block.factor for block in report.blocks[1:-1])
    assert TakeOver.model_validate_json(report.to_bytes()) == report
    text = "\n".join(report.describe())
    for said in ("donor.pth", "linear.weight [6, 4] in place of [10, 4]", "ema.decay", "frozen: 2 (conv1 to layer1.0)", "0.12"):
        assert said in text


def test_the_head_is_new_also_where_as_many_classes_are_among_the_weights(
    donor: ImageClassifier, build: Build, transfer_recipe: Make, tmp_path: Path
) -> None:
    save_pt(state(donor), tmp_path / "w")
    classifier = build(n_classes=10)
    head = classifier.network.get_parameter("linear.weight").detach().clone()
    take_over(classifier, transfer_recipe(), tmp_path / "w")
    assert torch.equal(classifier.network.get_parameter("linear.weight"), head)


def test_an_old_head_of_another_name_is_recognised(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path
) -> None:
    save_pt({name.replace("linear.", "fc."): tensor for name, tensor in state(donor).items()}, tmp_path / "w")
    report = take_over(fresh, transfer_recipe(), tmp_path / "w")
    assert [new.found for new in report.replaced] == [(10, 4), (10,)]
    assert not report.unexpected


def test_old_files_without_the_counters_of_batch_norms_and_half_precision_load(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path
) -> None:
    halves = {name: tensor.half() for name, tensor in state(donor).items() if tensor.is_floating_point()}
    save_pt(halves, tmp_path / "w")
    assert not take_over(fresh, transfer_recipe(), tmp_path / "w").missing
    actual = fresh.network.get_parameter("conv1.weight")
    assert actual.dtype == torch.float32
    assert torch.equal(actual, halves["conv1.weight"].float())


def test_filters_for_colour_are_summed_for_grey_images(
    donor: ImageClassifier, build: Build, transfer_recipe: Make, tmp_path: Path
) -> None:
    save_pt(state(donor), tmp_path / "w")
    grey = build(n_classes=10, channels=1, mean=(0.5,), std=(0.25,))
    report = take_over(grey, transfer_recipe(), tmp_path / "w")
    assert report.summed == ("conv1.weight",)
    pixels = torch.rand(2, 1, 8, 8)
    on_grey = grey.network.get_submodule("conv1")(pixels)
    on_colour = donor.network.get_submodule("conv1")(pixels.expand(-1, 3, -1, -1))
    assert torch.allclose(on_grey, on_colour, atol=1e-6)


def test_a_run_folder_gives_its_weights(
    trained: TrainedRun, transfer_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path / "run", trained)
    record = trained.record
    other = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.9,), std=(0.1,))
    for preprocessing, n_notes in ((record.preprocessing, 0), (other, 1)):
        classifier = build_classifier("lenet5", image=record.image, n_classes=3, preprocessing=preprocessing)
        report = take_over(classifier, transfer_recipe(network="lenet5"), tmp_path / "run")
        assert (report.source, report.sha256) == (record.run_id, record.weights_sha256)
        assert torch.equal(classifier.network.get_parameter("c1.weight"), trained.classifier.network.get_parameter("c1.weight"))
        assert len(report.notes) == n_notes
    assert "normalised with mean" in caplog.text


def test_the_weights_of_a_deeper_network_are_refused(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path
) -> None:
    deeper = {name.replace("layer2.1", f"layer2.{block}"): tensor for block in range(1, 4) for name, tensor in state(donor).items()}
    save_pt({f"module.{name}": tensor for name, tensor in deeper.items()}, tmp_path / "w")
    with pytest.raises(ContractError, match=r"a larger one: \d+ of its \d+ tensors have no place here, such as layer2\.2"):
        take_over(fresh, transfer_recipe(), tmp_path / "w")


def test_pixels_are_what_a_run_saw_and_for_other_files_what_is_usual(
    donor: ImageClassifier, trained: TrainedRun, transfer_recipe: Make, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", trained)
    save_pt(state(donor), tmp_path / "w")
    recipe = transfer_recipe()
    assert expected_preprocessing(recipe, tmp_path / "run") == trained.record.preprocessing
    assert expected_preprocessing(recipe, tmp_path / "w").mean == (0.485, 0.456, 0.406)


def test_an_error_leaves_the_classifier_as_it_was(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path
) -> None:
    weights = state(donor)
    weights["layer2.1.conv2.weight"] = weights["layer2.1.conv2.weight"][:, :2]
    save_pt(weights, tmp_path / "w")
    before = state(fresh)
    with pytest.raises(
        ContractError,
        match=r"found 1 elsewhere: layer2\.1\.conv2\.weight is float32 \[4, 4, 3, 3\] in the network and float32 \[4, 2, 3, 3\]",
    ):
        take_over(fresh, transfer_recipe(), tmp_path / "w")
    assert same(before, state(fresh)) == set(before)


def test_weights_of_another_network_are_refused_with_names_of_both(
    fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path
) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 10))
    save_pt(other.state_dict(), tmp_path / "w")
    with pytest.raises(
        ContractError,
        match=r"found 0 of its 45 tensors outside the head \(0%\)\. The network has conv1\.weight, .*the weights have 0\.weight",
    ):
        take_over(fresh, transfer_recipe(), tmp_path / "w")


def test_blocks_that_would_stay_frozen_at_random_are_refused_and_learn_where_nothing_is_frozen(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path
) -> None:
    save_pt({name: tensor for name, tensor in state(donor).items() if not name.startswith("layer1.1")}, tmp_path / "w")
    with pytest.raises(ContractError, match=r"missing: layer1\.1\.conv1\.weight.*--set frozen_fraction=0"):
        take_over(fresh, transfer_recipe(frozen_fraction=0.6), tmp_path / "w")
    report = take_over(fresh, transfer_recipe(frozen_fraction=0.4), tmp_path / "w")
    assert report.missing[0] == "layer1.1.conv1.weight"
    assert report.blocks[2].n_taken_over == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(
    donor: ImageClassifier, fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path, value: float
) -> None:
    weights = state(donor)
    weights["layer1.0.bn1.running_var"][1] = value
    save_pt(weights, tmp_path / "w")
    with pytest.raises(ContractError, match=r"expected finite numbers, found others in layer1\.0\.bn1\.running_var"):
        take_over(fresh, transfer_recipe(), tmp_path / "w")


def test_from_scratch_nothing_is_loaded(fresh: ImageClassifier, transfer_recipe: Make) -> None:
    before = state(fresh)
    report = take_over(fresh, transfer_recipe(weights="none"))
    assert report == TakeOver(weights="none")
    assert report.describe() == ("weights: none, everything starts at random",)
    assert same(before, state(fresh)) == set(before)


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_a_file_and_weights_that_are_no_file_do_not_go_together(
    fresh: ImageClassifier, transfer_recipe: Make, tmp_path: Path, weights: str
) -> None:
    with pytest.raises(UsageError, match="go together"):
        take_over(fresh, transfer_recipe(weights=weights), tmp_path / "w")


def test_file_without_a_file_and_a_recipe_that_transfers_nothing_are_refused(fresh: ImageClassifier, transfer_recipe: Make) -> None:
    with pytest.raises(UsageError, match=r"go together; found weights=file and the file none"):
        take_over(fresh, transfer_recipe(weights="file"))
    with pytest.raises(UsageError, match="'lenet5' takes over no weights"):
        take_over(fresh, get_recipe("lenet5"), Path("w"))


@pytest.mark.parametrize(("depth", "n_blocks"), [(20, 11), (56, 29)])
def test_the_published_cifar_networks_load_whole(depth: int, n_blocks: int) -> None:
    root = os.environ.get("CONVOY_DATA")
    path = next(Path(root or "/nowhere").glob(f"cifar10_resnet_weights/resnet{depth}-*.th"), None)
    if path is None:
        pytest.skip("CONVOY_DATA has no cifar10_resnet_weights")
    recipe = get_recipe("transfer", assignments=[f"backbone=cifar-resnet{depth}", "weights=file", "image_size_px=32"])
    image = ImageSpec(height_px=32, width_px=32, channels=3)
    preprocessing = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    classifier = build_classifier(recipe.network, image=image, n_classes=6, preprocessing=preprocessing)
    report = take_over(classifier, recipe, path)
    assert len(report.blocks) == n_blocks
    assert not report.missing
    assert not report.unexpected
    assert report.replaced[0].found == (10, 64)
    assert report.share == 1 - 6 * 65 / classifier.n_parameters
