"""Networks and recipes that installed packages add by entry points."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from convoy.cli.program import program
from convoy.contract.errors import MissingDependencyError, UsageError
from convoy.contract.image import ImageSpec
from convoy.training import plugins
from convoy.training.networks import build_network
from convoy.training.recipes import Architecture, get_recipe, recipe_families, recipe_names
from convoy.training.recipes.reader import READER_RECIPES

MODULE = """
from torch import nn
from convoy.training.recipes import Entry, Recipe

def tiny(image, n_classes, architecture):
    return nn.Sequential(nn.Flatten(), nn.Linear(image.height_px * image.width_px * image.channels, n_classes))

recipe = Recipe(name="tiny", title="one layer", source="our wiki, section 1", network="tiny", data="digits", epochs=3)
entry = Entry(
    Recipe(name="tiny-too", title="one layer more", source="our wiki, section 2", network="tiny", data="digits"),
    "Ours", by_data={"mnist": {"epochs": 4}}, elsewhere={"image_size_px": 16},
)
"""
SMALL = ImageSpec(height_px=8, width_px=8, channels=1)


def install(folder: Path, package: str, entry_points: str, module: str = MODULE) -> None:
    """What pip leaves behind of a package."""
    (folder / f"{package}.py").write_text(module)
    facts = folder / f"{package}-1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where packages are found."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(
        site,
        "convoy_tiny",
        "[convoy.networks]\ntiny = convoy_tiny:tiny\n\n[convoy.recipes]\ntiny = convoy_tiny:recipe\ntiny-too = convoy_tiny:entry\n",
    )
    monkeypatch.delitem(sys.modules, "convoy_tiny", raising=False)
    return site


@pytest.fixture
def broken(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    points = "[convoy.networks]\ncrooked = convoy_broken:x\n\n[convoy.recipes]\ncrooked = convoy_broken:x\n"
    install(site, "convoy_broken", points, "import nothing_of_this_name\n")
    monkeypatch.delitem(sys.modules, "convoy_broken", raising=False)
    return site


def test_a_network_of_a_package_is_built_by_its_name(tiny: Path) -> None:
    network = build_network("tiny", image=SMALL, n_classes=3, architecture=Architecture())
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_recipes_of_a_package_are_resolved_like_our_own(tiny: Path) -> None:
    assert recipe_names()[-2:] == ("tiny", "tiny-too")
    assert recipe_families()["Added by packages"] == ("tiny", "tiny-too")
    assert get_recipe("tiny", assignments=["epochs=2"]).epochs == 2
    assert get_recipe("tiny-too", data="mnist").epochs == 4
    assert get_recipe("tiny-too", data="photos/").image_size_px == 16


def test_names_are_known_before_anything_of_a_package_is_imported(broken: Path) -> None:
    assert "crooked" in recipe_names()
    assert plugins.names("convoy.networks") == ("crooked",)
    assert build_network("linear", image=SMALL, n_classes=2)(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert get_recipe("lenet5").name == "lenet5"


def test_a_broken_package_is_named_when_its_network_or_recipe_is_used(broken: Path) -> None:
    message = (
        r"'crooked' .*the package convoy_broken 1.2 cannot be loaded from convoy_broken:x: ModuleNotFoundError: .*nothing_of_this"
    )
    with pytest.raises(MissingDependencyError, match=message):
        get_recipe("crooked")
    with pytest.raises(MissingDependencyError, match=message):
        build_network("crooked", image=SMALL, n_classes=2)


def test_convoy_recipes_lists_what_packages_add_and_says_which_is_broken(tiny: Path, broken: Path) -> None:
    result = CliRunner().invoke(program, ["recipes"])
    assert result.exit_code == 0, result.output
    assert "Added by packages\n  crooked" in result.stdout
    assert "one layer more" in result.stdout
    assert "the package convoy_broken 1.2 cannot be loaded" in result.stderr
    names = [recipe["name"] for recipe in json.loads(CliRunner().invoke(program, ["recipes", "--json"]).stdout)]
    assert names == [*(name for name in recipe_names() if name != "crooked"), *READER_RECIPES]


def test_what_a_package_adds_must_be_what_its_group_asks_for(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = "[convoy.networks]\nodd = convoy_odd:number\n\n[convoy.recipes]\nodd = convoy_odd:recipe\n"
    install(site, "convoy_odd", points, MODULE + "\nnumber = 3\n")
    monkeypatch.delitem(sys.modules, "convoy_odd", raising=False)
    with pytest.raises(MissingDependencyError, match="expected a function of image, n_classes and architecture, found int"):
        build_network("odd", image=SMALL, n_classes=2)
    with pytest.raises(MissingDependencyError, match="expected a Recipe or an Entry named 'odd', found Recipe"):
        get_recipe("odd")


def test_two_packages_with_one_name_are_both_named(site: Path) -> None:
    for package in ("convoy_one", "convoy_two"):
        install(site, package, f"[convoy.networks]\ntwin = {package}:tiny\n")
    with pytest.raises(
        MissingDependencyError,
        match=r"expected one package to add it, found the package convoy_\w+ 1.2 and the package convoy_\w+ 1.2: uninstall one",
    ):
        build_network("twin", image=SMALL, n_classes=2)


def test_a_package_takes_no_name_that_convoy_has(site: Path) -> None:
    install(
        site, "convoy_thief", "[convoy.networks]\nlinear = convoy_thief:tiny\n\n[convoy.recipes]\nlinear = convoy_thief:recipe\n"
    )
    assert type(build_network("linear", image=SMALL, n_classes=2)).__name__ == "FullyConnected"
    assert get_recipe("linear").network == "linear"
    assert recipe_names().count("linear") == 1


def test_recipes_import_no_torch() -> None:
    code = "import sys; from convoy.training.recipes import get_recipe, recipe_names; [get_recipe(n) for n in recipe_names()]"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_a_name_that_nobody_has_comes_with_the_nearest_one_of_a_package(tiny: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        build_network("tinny", image=SMALL, n_classes=2)
