"""The trainings and readings behind ``benchmarks.check_reader``, each kept in a folder so that a long run can be gone on with."""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from convoy.contract.errors import DataError
from convoy.training.check_reader.building import alphabet_of, build_reader, load_handwriting
from convoy.training.check_reader.examples import Example, field_spec, from_real, from_synthetic
from convoy.training.check_reader.field_image import SyntheticField, SyntheticFields
from convoy.training.check_reader.fields import Field, Fields, block_folds, load_orand
from convoy.training.check_reader.fitting import fit_reader
from convoy.training.check_reader.grammar import compile_grammar, load_grammar
from convoy.training.check_reader.judging import Read, read_all
from convoy.training.check_reader.views import VIEWS, read_views
from convoy.training.data import DataLocation
from convoy.training.recipes.reader import NO_DISTORTION, ReaderRecipe, get_reader_recipe

N_SYNTHETIC: Final = 30_000
N_FOLDS: Final = 5
SEED: Final = 0
CORRECTIONS: Final = Path(__file__).with_name("check_reader_corrections.csv")
State = dict[str, torch.Tensor]
Views = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Stages:
    """What can be trained and read, and where it is kept.

    Attributes:
        folder: Holds a file for each stage that is done.
        say: Told what is being done.
    """

    folder: Path
    say: Callable[[str], None] = print

    @cached_property
    def real(self) -> Fields:
        """The real fields, in ``CONVOY_DATA``."""
        root = os.environ.get("CONVOY_DATA")
        if not root or not (Path(root) / "orand_car_a").is_dir():
            raise DataError("expected real amounts in $CONVOY_DATA/orand_car_a, found none.")
        return load_orand(Path(root) / "orand_car_a")

    @cached_property
    def corrections(self) -> dict[str, str]:
        """The digits of the fields whose labels are wrong, by name."""
        return read_corrections({field.name: field for field in self.real})

    @cached_property
    def mended(self) -> Fields:
        """The real fields with labels that are right."""
        fields = (replace(field, digits=self.corrections.get(field.name, field.digits)) for field in self.real)
        return Fields(self.real.name, tuple(fields))

    @cached_property
    def synthetic(self) -> list[SyntheticField]:
        """Synthetic fields, written with MNIST's training digits."""
        fields: list[SyntheticField] = self.kept("synthetic.pkl", self._draw)
        return fields

    def _draw(self) -> list[SyntheticField]:
        self.say(f"drawing {N_SYNTHETIC:,} synthetic fields")
        drawing = SyntheticFields(load_handwriting("mnist", "train", DataLocation.from_environment()), "chilean", SEED)
        return [drawing.draw(index) for index in range(N_SYNTHETIC)]

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What stands in the folder under a name; made and put there where nothing does."""
        path = self.folder / name
        if path.exists():
            return pickle.loads(path.read_bytes())
        made = make()
        aside = path.with_suffix(".part")
        aside.write_bytes(pickle.dumps(made))
        aside.rename(path)
        return made

    def pretrained(self, name: str, recipe: ReaderRecipe, start: State | None = None) -> State:
        """The weights after the synthetic fields."""
        return self.kept(f"{name}.weights", lambda: self._fit(name, recipe, [], start))  # type: ignore[no-any-return]

    def _fit(self, name: str, recipe: ReaderRecipe, real: Sequence[Example], start: State | None) -> State:
        self.say(f"training {name}")
        torch.manual_seed(SEED)
        reader = build_reader(recipe)
        if start is not None:
            reader.network.load_state_dict(start)
        synthetic = from_synthetic(self.synthetic, field_spec(recipe.height_px))
        fit_reader(
            reader, recipe, synthetic, real, seed=SEED,
            on_epoch=lambda epoch: self.say(f"  {name}: {epoch.phase} {epoch.epoch}: loss {epoch.loss:.3f}, {epoch.seconds:.0f} s"),
        )  # fmt: skip
        return {key: value.clone() for key, value in reader.network.state_dict().items()}

    def read(self, name: str, recipe: ReaderRecipe, weights: State, *, free: bool = False) -> list[Read]:
        """All real fields, with weights that saw none of them."""
        places = np.arange(len(self.real))
        return self.kept(f"{name}.reads", lambda: self._read(recipe, weights, places, free=free))  # type: ignore[no-any-return]

    def _read(self, recipe: ReaderRecipe, weights: State, places: Any, *, free: bool = False, views: Views = ()) -> list[Read]:
        alphabet = alphabet_of(load_grammar(recipe.grammar))
        grammar = compile_grammar("amount = (" + " | ".join(json.dumps(c) for c in alphabet) + "){1,20}") if free else None
        reader = build_reader(recipe, grammar)
        if alphabet_of(reader.lattice.grammar) != alphabet:
            raise DataError("expected the grammar of any string to have the recipe's characters, found others.")
        reader.network.load_state_dict(weights)
        examples = from_real(self.real.take(places), field_spec(recipe.height_px))
        return read_views(reader.eval(), examples, views) if views else read_all(reader.eval(), examples)

    def crossed(self, name: str, recipe: ReaderRecipe, start: State, *, views: Views = (), mended: bool = False) -> list[Read]:
        """All real fields, each with weights that saw no neighbour of it (block cross-validation).

        Args:
            name: Of what is kept.
            recipe: How to train on the real fields.
            start: The weights after the synthetic ones.
            views: Several looks at each field.
            mended: Whether to learn from mended labels.
        """
        found: dict[int, Read] = {}
        suffix = "" if not views else ".views" if len(views) == len(VIEWS) else f".views{len(views)}"
        fields = self.mended if mended else self.real
        for number, fold in enumerate(block_folds(self.real, N_FOLDS, SEED)):
            key = f"{name}.fold{number}"
            examples = from_real(fields.take(fold.train), field_spec(recipe.height_px))
            weights = self.kept(
                f"{key}.weights",
                lambda key=key, examples=examples: self._fit(key, recipe.model_copy(update={"epochs": 0}), examples, start),  # type: ignore[misc]
            )
            reads = self.kept(
                f"{key}{suffix}.reads",
                lambda weights=weights, fold=fold: self._read(recipe, weights, fold.test, views=views),  # type: ignore[misc]
            )
            found.update(zip(fold.test.tolist(), reads, strict=True))
        return [found[place] for place in range(len(self.real))]


def recipes() -> dict[str, ReaderRecipe]:
    """The recipes that are compared."""
    common = {"handwriting": "mnist", "n_synthetic": N_SYNTHETIC, "epochs": 3, "real_epochs": 15, "splice_share": 0.0}
    lenet5, small, large = (
        get_reader_recipe(name).model_copy(update=common) for name in ("check-reader-lenet5", "check-reader-small", "check-reader")
    )
    return {
        "frames": lenet5.model_copy(update={"criterion": "frames"}),
        "ctc": lenet5.model_copy(update={"criterion": "ctc"}),
        "viterbi": lenet5.model_copy(update={"criterion": "viterbi"}),
        "lenet5": lenet5,
        "plain": lenet5.model_copy(update={"distortion": NO_DISTORTION, "real_epochs": 8}),
        "small": small.model_copy(update={"epochs": 4}),
        "small-spliced": small.model_copy(update={"splice_share": 0.5, "real_epochs": 40}),
        "large": large.model_copy(update={"epochs": 6}),
        "large-spliced": large.model_copy(update={"splice_share": 0.5, "real_epochs": 30}),
    }


def read_corrections(fields: Mapping[str, Field]) -> dict[str, str]:
    """The digits of the fields whose labels are wrong, by name.

    Raises:
        DataError: The list names a field that is not there, or a label that is another.
    """
    with CORRECTIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["name"] not in fields or fields[row["name"]].digits != row["given"]:
            raise DataError(f"{CORRECTIONS.name}: expected the field {row['name']} with the label {row['given']}, found another.")
    return {row["name"]: row["corrected"] for row in rows}


def count(module: nn.Module) -> int:
    """Numbers that a network learns."""
    return sum(parameter.numel() for parameter in module.parameters())
