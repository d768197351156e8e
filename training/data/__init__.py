"""Data sets by name or by folder, and the augmentation of training batches."""

from __future__ import annotations

from convoy.training.data.augmentation import Augment as Augment
from convoy.training.data.catalogue import check_dataset_name as check_dataset_name
from convoy.training.data.catalogue import dataset_names as dataset_names
from convoy.training.data.catalogue import load_dataset as load_dataset
from convoy.training.data.dataset import Dataset as Dataset
from convoy.training.data.dataset import Images as Images
from convoy.training.data.dataset import Split as Split
from convoy.training.data.folder import load_folder as load_folder
from convoy.training.data.location import DataLocation as DataLocation
from convoy.training.data.plugins import DatasetLoader as DatasetLoader
