"""What a foreign file may claim, and what the process that looks at it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIN_OPSET_VERSION: Final = 7
"""The oldest operator set of which broadcasting means what it means today."""

RUNTIME_DOMAIN: Final = "com.microsoft"
RUNTIME_OPERATORS: Final = frozenset({
    "BiasGelu", "DequantizeLinear", "DynamicQuantizeMatMul", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu",
    "MatMulIntegerToFloat", "NhwcMaxPool", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax",
    "QuantizeLinear", "QuickGelu", "SkipLayerNormalization",
})  # fmt: skip
"""ONNX Runtime's own operators that quantised and fused image networks use. None of them reads a file, as EPContext does."""


@dataclass(frozen=True)
class Limits:
    """Bounds for one foreign file. The defaults let a ResNet-152 (241 MB) through with room, in seconds.

    Attributes:
        max_file_bytes: The file, and the file with its external data embedded; protobuf itself ends at 2 GiB - 1.
        max_decoded_bytes: What the parsed message may take; packed integers grow eightfold when they are decoded.
        max_fields: Protobuf fields in the file. One field costs two bytes on disk and a few hundred in memory.
        max_nodes: Nodes, subgraphs' included, local functions counted as often as they are called.
        max_depth: Graphs inside graphs (If, Loop, Scan), and functions that call functions.
        max_name_chars: One name.
        max_text_bytes: Names, documentation and metadata together.
        max_rank: Axes of one tensor.
        max_tensor_bytes: One tensor that is made from constants, as by Expand or a sparse initialiser.
        max_constants_bytes: All such tensors together.
        max_pad_px: One entry of a pads, kernel_shape or output_shape attribute.
        max_external_files: Files beside the model.
        memory_bytes: Data memory of the child process beyond what the payload costs.
        memory_per_payload_byte: Data memory of the child process for each byte of the payload or of the files that it reads.
        cpu_s: Processor time of the child process.
        deadline_s: Wall-clock time of the child process.
        max_reply_bytes: What the child process may answer.
    """

    max_file_bytes: int = 2**31 - 1
    max_decoded_bytes: int = 2**32
    max_fields: int = 1_000_000
    max_nodes: int = 100_000
    max_depth: int = 8
    max_name_chars: int = 4096
    max_text_bytes: int = 2**26
    max_rank: int = 32
    max_tensor_bytes: int = 2**30
    max_constants_bytes: int = 2**31
    max_pad_px: int = 2**16
    max_external_files: int = 10_000
    memory_bytes: int = 2 * 2**30
    memory_per_payload_byte: int = 6
    cpu_s: int = 600
    deadline_s: float = 300.0
    max_reply_bytes: int = 2**31 + 2**20
