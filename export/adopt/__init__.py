"""Adoption: other people's ONNX files, contained before anything loads them. Its modules load no torch when imported."""
