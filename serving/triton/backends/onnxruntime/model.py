"""Where Triton looks for the backend ``onnxruntime`` (a Python-based backend is a ``model.py`` in the backend's folder)."""

from convoy.serving.triton.backend.model import TritonPythonModel as TritonPythonModel
