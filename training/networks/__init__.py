"""Networks, and the preprocessing that stands before each of them in training, evaluation and the exported graph."""

from __future__ import annotations

from convoy.training.networks.classifier import ImageClassifier as ImageClassifier
from convoy.training.networks.classifier import build_classifier as build_classifier
from convoy.training.networks.lenet5 import LeNet5 as LeNet5
from convoy.training.networks.logits import TrainingLogits as TrainingLogits
from convoy.training.networks.preprocessing import PixelPreprocessing as PixelPreprocessing
from convoy.training.networks.registry import build_network as build_network
