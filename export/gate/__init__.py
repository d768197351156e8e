"""The gate: PyTorch against ONNX Runtime, on real images. Nothing passes for lack of evidence."""
