"""Data sets by name, held in memory once, and the augmentation of training batches."""

from __future__ import annotations

from convoy.training.data.augmentation import Augment as Augment
from convoy.training.data.catalogue import dataset_names as dataset_names
from convoy.training.data.catalogue import load_dataset as load_dataset
from convoy.training.data.dataset import Dataset as Dataset
from convoy.training.data.dataset import Split as Split
from convoy.training.data.location import DataLocation as DataLocation
