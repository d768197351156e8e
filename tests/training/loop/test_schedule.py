from __future__ import annotations

import pytest

from convoy.training.loop.schedule import Plateau, learning_rate_at
from convoy.training.recipes import get_recipe


def test_step_falls_every_so_many_epochs() -> None:
    fields = ["schedule=step", "schedule_epochs=2", "schedule_factor=0.5", "learning_rate=1.0", "epochs=6"]
    recipe = get_recipe("lenet5", assignments=fields)
    path = [learning_rate_at(step, 6 * 7, recipe) for step in range(6 * 7)]
    assert path == [1.0] * 14 + [0.5] * 14 + [0.25] * 14


def test_plateau_falls_when_the_loss_has_not_for_so_many_epochs() -> None:
    plateau = Plateau(2)
    falls = []
    for loss in (1.0, 0.9, 0.95, 0.89, 0.89, 0.9, 0.91, 0.92, 0.5, 0.6):
        plateau.end_epoch(loss)
        falls.append(plateau.n_falls)
    assert falls == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2]
    recipe = get_recipe("lenet5", assignments=["schedule=plateau", "schedule_factor=0.1", "learning_rate=1.0"])
    assert [learning_rate_at(0, 1, recipe, n_falls=n) for n in (0, 1, 2)] == pytest.approx([1, 0.1, 0.01])


def test_a_plateau_goes_on_where_another_was() -> None:
    one, two = Plateau(3), Plateau(3)
    for loss in (1.0, 1.1):
        one.end_epoch(loss)
    two.load_state_dict(one.state_dict())
    for loss in (1.2, 1.3, 1.4):
        one.end_epoch(loss)
        two.end_epoch(loss)
        assert one.state_dict() == two.state_dict()
