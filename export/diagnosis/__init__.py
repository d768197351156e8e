"""Where an ONNX file departs from the network that it came from: the node, the module, by how much, and the likeliest cause."""

from convoy.export.diagnosis.fault import find_fault
from convoy.export.diagnosis.foreign import trace_onnx
from convoy.export.diagnosis.layers import measure_layers
from convoy.export.diagnosis.trace import Trace, allowed_difference, trace_network

__all__ = ["Trace", "allowed_difference", "find_fault", "measure_layers", "trace_network", "trace_onnx"]
