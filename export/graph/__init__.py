"""The ONNX graph: from an ``nn.Module`` to a ``ModelProto`` that loads on every target server."""
