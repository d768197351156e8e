from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from convoy.contract.errors import UsageError
from convoy.training.recipes import Architecture, Recipe, get_recipe, recipe_families, recipe_names, settings
from convoy.training.recipes.entry import KNOWN_DATA
from convoy.training.recipes.reader import READER_RECIPES


def test_lenet5_trains_on_digits_unless_told_otherwise() -> None:
    assert "lenet5" in recipe_names()
    assert get_recipe("lenet5").data == "digits"
    assert get_recipe("lenet5", data="mnist").data == "mnist"


def test_the_data_set_changes_the_recipe_and_the_person_has_the_last_word() -> None:
    assert get_recipe("lenet5", data="mnist").epochs != get_recipe("lenet5").epochs
    assert get_recipe("lenet5", data="mnist", assignments=["epochs=2"]).epochs == 2


def test_every_recipe_names_its_source_and_explains_every_field() -> None:
    for name in recipe_names():
        recipe = get_recipe(name)
        assert "section" in recipe.source
        assert all(setting.description for setting in settings(recipe))


def test_a_recipe_is_frozen_and_survives_json() -> None:
    recipe = get_recipe("lenet5", data="mnist")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 3
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Recipe.model_validate({**get_recipe("lenet5").model_dump(), "epoch": 3})


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("learning_rate = 1", "learning_rate", 1.0),
        ("optimizer=sgd", "optimizer", "sgd"),
        ('optimizer="sgd"', "optimizer", "sgd"),
    ],
)
def test_set_changes_a_field(assignment: str, field: str, value: object) -> None:
    assert getattr(get_recipe("lenet5", assignments=[assignment]), field) == value


def test_set_changes_fields_of_groups_and_the_last_one_wins() -> None:
    recipe = get_recipe(
        "lenet5",
        assignments=[
            "augmentation.shift_px=1",
            "augmentation.shift_px=0.5",
            "normalisation.mean=[0.1]",
            "normalisation.std=[0.3]",
            "normalisation.polarity=as-is",
        ],
    )
    assert recipe.augmentation.shift_px == 0.5
    assert recipe.normalisation.mean == (0.1,)
    assert recipe.normalisation.polarity == "as-is"


def test_settings_list_the_values_that_a_field_may_have() -> None:
    choices = {setting.key: setting.choices for setting in settings(get_recipe("lenet5"))}
    assert choices["architecture.pooling"] == ("max", "average")
    assert choices["architecture.activation"][:2] == ("identity", "logistic")
    assert choices["optimizer"] == ("sgd", "adamw")
    assert choices["epochs"] == choices["normalisation.mean"] == ()


def test_what_set_changes_is_all_that_settings_lists() -> None:
    recipe = get_recipe("lenet5")
    for setting in settings(recipe):
        text = setting.value if isinstance(setting.value, str) else json.dumps(setting.value)
        assert get_recipe("lenet5", assignments=[f"{setting.key}={text}"]) == recipe


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("epoch=3", "did you mean 'epochs'"),
        ("augmentation.rotation=3", "did you mean 'augmentation.rotation_deg'"),
        ("qqq=3", "known: architecture.activation"),
        ("augmentation=3", "set one of augmentation.shift_px"),
        ("name=mine", "cannot be set"),
        ("data=mnist", "chosen with --data"),
        ("epochs=many", 'epochs: expected a valid integer.*, found "many"'),
        ("normalisation.mean=0.1", r"expected a valid array, found 0.1. Write a list: --set 'normalisation.mean=\[0.1\]'"),
        ("epochs=1.5", "epochs: expected a valid integer.*found 1.5"),
        ("epochs=true", "epochs: expected a valid integer.*found true"),
        ("epochs=0", "greater than or equal to 1"),
        ("batch_size=", 'found ""'),
        ("learning_rate=NaN", "found"),
        ("learning_rate=-1", "greater than 0"),
        ("learning_rate=1e999", "found"),
        ("optimizer=adam", "'sgd' or 'adamw'"),
        ("normalisation.mean=[0.1]", "go together"),
        ("augmentation.contrast_fraction=0.5", "less than 0.5"),
        ("warmup_fraction=0", "one-cycle rises first"),
    ],
)
def test_a_wrong_set_says_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get_recipe("lenet5", assignments=[assignment])


def test_a_std_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="std: each value must be above 0"):
        get_recipe("lenet5", assignments=["normalisation.mean=[0]", "normalisation.std=[0.0]"])


def test_an_unknown_recipe_comes_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'lenet5'"):
        get_recipe("lenet-5")
    with pytest.raises(UsageError, match=r"no recipe 'check-reder': did you mean 'check-reader'\?"):
        get_recipe("check-reder")


def test_a_recipe_that_is_like_none_comes_with_all_names_readers_too() -> None:
    with pytest.raises(UsageError, match="there is no recipe 'xyzzy': known: linear, ") as caught:
        get_recipe("xyzzy")
    assert all(f" {name}" in str(caught.value) for name in (*recipe_names(), *READER_RECIPES))


def test_every_recipe_is_valid_on_every_data_set_and_on_folders() -> None:
    for name in recipe_names():
        for data in (*KNOWN_DATA, "photos/of/ours"):
            assert get_recipe(name, data=data).data == data


def test_every_recipe_stands_under_one_heading_and_fits_a_terminal() -> None:
    families = recipe_families()
    assert [name for names in families.values() for name in names] == list(recipe_names())
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        assert len(f"  {name:<{width}}  {get_recipe(name).title}") <= 80


def test_on_folders_images_are_brought_to_the_size_that_the_network_was_made_for() -> None:
    sizes = {"lenet5": 28, "lenet300": 28, "lenet5-1998": 28, "cifar-resnet20": 32, "resnet50": 224, "vgg-d": 224, "transfer": 224}
    assert {name: get_recipe(name, data="photos").image_size_px for name in sizes} == sizes
    assert get_recipe("resnet50").image_size_px is None  # CIFAR-10's own size: the small-image variant


def test_digits_are_never_mirrored_and_photos_are() -> None:
    for name in recipe_names():
        for data in ("digits", "mnist"):
            assert get_recipe(name, data=data).augmentation.flip_probability == 0, name
    for name in ("lenet5", "cifar-resnet20", "resnet18"):
        assert get_recipe(name, data="cifar10").augmentation.flip_probability == 0.5
    assert get_recipe("resnet18", data="photos").augmentation.flip_probability == 0.5


def test_the_papers_settings_are_those_of_the_recipes() -> None:
    alexnet = get_recipe("alexnet", data="photos")
    assert (alexnet.batch_size, alexnet.momentum, alexnet.weight_decay, alexnet.learning_rate) == (128, 0.9, 5e-4, 0.01)
    assert (alexnet.schedule, alexnet.schedule_factor, alexnet.architecture.dropout) == ("plateau", 0.1, 0.5)
    assert get_recipe("vgg-d", data="photos").batch_size == 256
    resnet = get_recipe("resnet50", data="photos")
    assert (resnet.learning_rate, resnet.weight_decay, resnet.batch_size, resnet.nesterov) == (0.1, 1e-4, 256, False)
    cifar = get_recipe("cifar-resnet20")
    assert (cifar.learning_rate, cifar.weight_decay, cifar.batch_size, cifar.augmentation.crop_px) == (0.1, 1e-4, 128, 4)
    assert get_recipe("lenet5").architecture == Architecture(
        activation="relu", pooling="max", downsampling="pool", batch_norm="none", dropout=0.0
    )
