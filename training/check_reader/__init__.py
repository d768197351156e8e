"""The check reader of LeCun, Bottou, Bengio and Haffner (1998): amounts read from a field by a network and a grammar."""

from __future__ import annotations
