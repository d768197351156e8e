"""What networks are made of: layers, shapes, parameters, multiply-accumulates, receptive fields."""

from __future__ import annotations

from convoy.training.anatomy.anatomy import Anatomy as Anatomy
from convoy.training.anatomy.anatomy import Layer as Layer
from convoy.training.anatomy.anatomy import ReceptiveField as ReceptiveField
from convoy.training.anatomy.anatomy import examine as examine
from convoy.training.anatomy.outline import Row as Row
from convoy.training.anatomy.outline import depth_of as depth_of
from convoy.training.anatomy.outline import outline as outline
from convoy.training.anatomy.reach import Reach as Reach
