"""What a file that is no ONNX file seems to be, and how to come from there to ONNX."""

from __future__ import annotations

import re
from typing import Final

_PYTORCH: Final = "load it in PyTorch and export it with torch.onnx.export, or give it to `convoy export --torch FACTORY --weights`"
_KERAS: Final = "convert it with tf2onnx (python -m tf2onnx.convert --keras FILE --output model.onnx)"
_UNPACK: Final = "unpack it, and name the .onnx file inside"
_DOWNLOAD: Final = "what was downloaded is not the model itself: download it again (git lfs pull, or the address of the raw file)"

_SIGNS: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _KERAS),
    (
        4,
        b"TFL3",
        "a TensorFlow Lite model",
        "convert it with tf2onnx (python -m tf2onnx.convert --tflite FILE --output model.onnx)",
    ),
    (4, b"ORTM", "a model in ONNX Runtime's own .ort format", "take the .onnx file that it was made from"),
    (0, b"GGUF", "a GGUF language model", "Convoy serves image networks in the ONNX format"),
    (0, b"version https://git-lfs", "a Git LFS pointer", _DOWNLOAD),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x93NUMPY", "a NumPy array", "name the network's ONNX file"),
    (0, b"\x89PNG\r\n", "a PNG image", "name the network's ONNX file"),
    (0, b"\xff\xd8\xff", "a JPEG image", "name the network's ONNX file"),
    (0, b"%PDF-", "a PDF document", "name the network's ONNX file"),
    (0, b"\x7fELF", "a Linux program or TensorRT library", "name the network's ONNX file"),
    (0, b"ptrt", "a TensorRT engine", "take the ONNX file that it was built from"),
)


def foreign_format(head: bytes) -> str | None:
    """Say what a file that does not hold ONNX seems to hold.

    Args:
        head: The file's first bytes; 4 KiB are enough.

    Returns:
        ``"a ...: what to do"``, or None where nothing speaks against ONNX.
    """
    for offset, sign, kind, remedy in _SIGNS:
        if head[offset : offset + len(sign)] == sign:
            return f"{kind}: {remedy}"
    if head.startswith(b"PK\x03\x04"):
        return _archive(head)
    if re.match(rb"\x80[\x02-\x05][\x95}(cX\x8a\]K]", head):
        return f"a Python pickle, as an old PyTorch checkpoint is: {_PYTORCH}"
    if len(head) > 9 and head[8:10] in (b'{"', b"{ ") and int.from_bytes(head[:8], "little") < 2**27:
        return f"a safetensors file, which holds weights without a network: build the network with them; {_PYTORCH}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        return f"an HTML or XML document: {_DOWNLOAD}"
    if text[:1] == b"{":
        return "a JSON document: name the network's ONNX file"
    return None


def _archive(head: bytes) -> str:
    if b"data.pkl" in head or b"/version" in head or b".format_version" in head:
        return f"a PyTorch checkpoint or TorchScript archive: {_PYTORCH}"
    if b".npy" in head:
        return "a NumPy archive: name the network's ONNX file"
    if b"config.json" in head or b"metadata.json" in head:
        return f"a Keras archive: {_KERAS}"
    return f"a zip archive: {_UNPACK}"
