"""External data: read from the model's own folder alone, whatever the file says and whatever moves meanwhile."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convoy.contract.errors import ExportError
from convoy.export.adopt import external_data
from convoy.export.adopt.containment import contain, read_contained
from convoy.export.adopt.limits import Limits

WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)
SECRET = b"the content of a file that is none of the model's business ...." * 8


def model(location: str = "weights.bin", *, weight: np.ndarray = WEIGHT, **entries: str) -> onnx.ModelProto:
    """A dense layer whose weight stands in another file."""
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=weight.shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "weight"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 8])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with its weights, beside a secret."""
    (tmp_path / "secret.bin").write_bytes(SECRET)
    inner = tmp_path / "model"
    (inner / "sub").mkdir(parents=True)
    (inner / "weights.bin").write_bytes(WEIGHT.tobytes())
    (inner / "sub" / "weights.bin").write_bytes(b"head" + WEIGHT.tobytes() + b"tail")
    return inner


def save(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refused(path: Path, match: str, limits: Limits | None = None) -> None:
    with pytest.raises(ExportError, match=match) as told:
        contain(path, limits or Limits())
    assert "none of the model's business" not in str(told.value)


@pytest.mark.parametrize(
    "proto",
    [
        model(),
        model(offset="0", length="256"),
        model("./weights.bin"),
        model("sub/weights.bin", offset="4"),
        model(checksum=hashlib.sha1(WEIGHT.tobytes()).hexdigest()),
    ],
    ids=["plain", "offset and length", "dot", "folder below", "checksum"],
)
def test_external_data_are_embedded(proto, folder):
    path = save(folder, proto)
    contained = onnx.ModelProto.FromString(contain(path))
    tensor = contained.graph.initializer[0]
    assert not tensor.external_data
    assert tensor.data_location == TensorProto.DEFAULT
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHT)
    assert read_contained(path) == contain(path)


def test_the_memory_of_the_process_follows_what_external_data_need(folder):
    weight = np.zeros((8, 2**21), np.float32)  # 64 MiB
    (folder / "weights.bin").write_bytes(weight.tobytes())
    path = save(folder, model(weight=weight))
    little = Limits(memory_bytes=2**27)
    assert len(read_contained(path, little)) > 2**26
    with pytest.raises(ExportError, match="memory"):
        read_contained(path, Limits(memory_bytes=2**27, memory_per_payload_byte=0))


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "junk/../../secret.bin",
        "..",
        "sub/..",
        "./../secret.bin",
        "/etc/passwd",
        "//etc/passwd",
        "C:\\secret.bin",
        "c:/secret.bin",
        "..\\secret.bin",
        "sub\\..\\..\\secret.bin",
        "\\\\server\\share\\secret.bin",
        "",
        ".",
        "weights.bin\n",
        "a/" * 20 + "weights.bin",
    ],
)
def test_a_location_that_leads_out_is_refused(location, folder):
    refused(save(folder, model(location, length="256")), "below the model's own folder, found the location")


def test_a_location_with_nul_is_refused_before_it_is_parsed(folder):
    refused(save(folder, model("weights.bin\0../secret.bin")), "printable characters")


@pytest.mark.parametrize("location", [".env", ".ssh/id_rsa", "sub/.git/config"])
def test_a_hidden_file_is_refused(location, folder):
    refused(save(folder, model(location)), "which is hidden")


def test_an_address_in_memory_is_refused_wherever_it_stands(folder):
    proto = model("*/_ORT_MEM_ADDR_/*", offset="140000000000000", length="256")
    refused(save(folder, proto), "ONNX Runtime's mark for an address in memory")
    constant = model()
    attribute = helper.make_node("Constant", [], ["weight"], value=proto.graph.initializer[0])
    del constant.graph.initializer[:]
    constant.graph.node.insert(0, attribute)
    refused(save(folder, constant), "ONNX Runtime's mark for an address in memory")
    sparse = model()
    values = TensorProto()
    values.CopyFrom(proto.graph.initializer[0])
    del values.dims[:]
    values.dims.append(64)
    values.name = "other"
    indices = numpy_helper.from_array(np.arange(64), "")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [64]))
    refused(save(folder, sparse), "ONNX Runtime's mark for an address in memory")


def link_file(folder: Path) -> str:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    return "link.bin"


def link_inside(folder: Path) -> str:
    (folder / "link.bin").symlink_to("weights.bin")
    return "link.bin"


def link_folder(folder: Path) -> str:
    (folder / "out").symlink_to(folder.parent)
    return "out/secret.bin"


def link_root(folder: Path) -> str:
    (folder / "root").symlink_to("/")
    return "root/etc/passwd"


def link_dangling(folder: Path) -> str:
    (folder / "gone.bin").symlink_to("nowhere")
    return "gone.bin"


def link_loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return "loop/weights.bin"


@pytest.mark.parametrize("make", [link_file, link_inside, link_folder, link_root, link_dangling, link_loop])
def test_a_symbolic_link_is_refused_at_any_component(make: Callable[[Path], str], folder):
    refused(save(folder, model(make(folder))), "symbolic link")


def test_a_hard_link_is_refused(folder):
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    refused(save(folder, model("hard.bin")), r"2 names \(hard links\)")


def test_what_is_no_regular_file_is_refused_without_waiting(folder):
    os.mkfifo(folder / "pipe")
    for location in ("pipe", "sub"):
        refused(save(folder, model(location)), "folder, pipe, socket or device")
    refused(save(folder, model("weights.bin/weights.bin")), "cannot be read")
    refused(save(folder, model("absent.bin")), "found no such file: fetch it too")
    refused(save(folder, model("a" * 300)), "cannot be read")


def test_a_device_is_refused(folder):
    status = Path("/dev/zero").stat()
    try:
        os.mknod(folder / "zero", 0o600 | 0o020000, status.st_rdev)
    except PermissionError:
        pytest.skip("only root may make a device")
    refused(save(folder, model("zero")), "folder, pipe, socket or device")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": "1"}, "expected 256 bytes from byte 1 .* found a file of 256"),
        ({"offset": "9" * 19}, "found a file of 256"),
        ({"offset": "9" * 20}, "offset of digits alone"),
        ({"offset": "-4"}, "offset of digits alone"),
        ({"offset": "0x10"}, "offset of digits alone"),
        ({"offset": "٤"}, "offset of digits alone"),
        ({"length": "255"}, "length of 256 bytes .* found 255"),
        ({"length": "257"}, "length of 256 bytes .* found 257"),
        ({"length": "-1"}, "length of digits alone"),
        ({"length": ""}, "length of digits alone"),
        ({"__class__": "x"}, r"the keys location, .* found \['location', '__class__'\]"),
        ({"basepath": "/"}, "the keys location"),
        ({"checksum": "0" * 40}, "with the checksum '0000"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(entries, match, folder):
    refused(save(folder, model(**entries)), match)


def test_keys_that_are_missing_or_twice_are_refused(folder):
    twice = model()
    twice.graph.initializer[0].external_data.add(key="location", value="../secret.bin")
    refused(save(folder, twice), r"found \['location', 'location'\]")
    none = model()
    del none.graph.initializer[0].external_data[:]
    refused(save(folder, none), r"found \[\]")


def test_external_data_beside_inner_data_are_refused(folder):
    both = model()
    both.graph.initializer[0].raw_data = WEIGHT.tobytes()
    refused(save(folder, both), "external numbers alone")
    inner = model()
    inner.graph.initializer[0].raw_data = WEIGHT.tobytes()
    inner.graph.initializer[0].data_location = TensorProto.DEFAULT
    refused(save(folder, inner), "says that its data are inside")
    strings = model()
    strings.graph.initializer[0].data_type = TensorProto.STRING
    refused(save(folder, strings), "external numbers alone")


def many(count: int, **change: str) -> onnx.ModelProto:
    proto = model()
    for index in range(count):
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(proto.graph.initializer[0])
        tensor.name = f"w{index}"
        for entry in tensor.external_data:
            entry.value = change.get(entry.key, entry.value).format(index)
    return proto


def test_one_file_that_many_tensors_share_cannot_grow_without_bound(folder):
    path = save(folder, many(1000))
    assert len(contain(path)) > 256_000
    refused(path, "with external data embedded.*found 297,", Limits(max_file_bytes=200_000))


def test_the_number_of_files_is_bounded(folder):
    refused(save(folder, many(20, location="w{}.bin")), "at most 10 external files, found 21", Limits(max_external_files=10))


def test_claims_above_two_gigabytes_are_refused_before_a_file_is_opened(folder, monkeypatch):
    proto = model(location="absent.bin")
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend([2**20, 2**10])
    path = save(folder, proto)
    refused(path, "found 4,294,967")
    with pytest.raises(ExportError, match="at most 2,147,483,647 bytes of external data, found 4,294,967,296"):
        read_contained(path)


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_swap_between_the_check_and_the_opening_does_not_help(kind, folder, monkeypatch):
    """The file is what it should be when it is looked at, and another when it is opened."""
    path, target = save(folder, model()), folder / "weights.bin"
    check = external_data._check_kind
    swapped = []

    def swap(status: os.stat_result, reference: external_data.Reference) -> None:
        check(status, reference)
        if not swapped:
            swapped.append(True)
            target.unlink()
            if kind == "symbolic":
                target.symlink_to(folder.parent / "secret.bin")
            else:
                os.link(folder.parent / "secret.bin", target)

    monkeypatch.setattr(external_data, "_check_kind", swap)
    refused(path, "symbolic link" if kind == "symbolic" else "hard links")
    assert swapped


def test_a_swap_after_the_opening_changes_nothing(folder, monkeypatch):
    path, target = save(folder, model()), folder / "weights.bin"
    read = external_data._read

    def swap(descriptor: int, reference: external_data.Reference) -> bytes:
        target.unlink()
        target.symlink_to(folder.parent / "secret.bin")
        return read(descriptor, reference)

    monkeypatch.setattr(external_data, "_read", swap)
    tensor = onnx.ModelProto.FromString(contain(path)).graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHT)


def test_a_folder_that_is_swapped_for_a_link_all_the_time_never_leaks(folder):
    """One thread swaps the folder and a link to the secret's; whatever is read is the weights or a refusal."""
    (folder.parent / "weights.bin").write_bytes(SECRET)
    path = save(folder, model("sub/weights.bin", offset="4"))
    stop = threading.Event()

    def swap() -> None:
        (folder / "out").symlink_to(folder.parent)
        while not stop.is_set():
            (folder / "sub").rename(folder / "kept")
            (folder / "out").rename(folder / "sub")
            (folder / "sub").rename(folder / "out")
            (folder / "kept").rename(folder / "sub")

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = set()
    try:
        for _ in range(300):
            try:
                tensor = onnx.ModelProto.FromString(contain(path)).graph.initializer[0]
            except ExportError:
                outcomes.add("refused")
            else:
                outcomes.add("read")
                assert tensor.raw_data == WEIGHT.tobytes()
    finally:
        stop.set()
        swapper.join()
    assert outcomes


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(folder, monkeypatch):
    path = save(folder, model())
    read = external_data._read

    def cut(descriptor: int, reference: external_data.Reference) -> bytes:
        os.truncate(folder / "weights.bin", 100)
        return read(descriptor, reference)

    monkeypatch.setattr(external_data, "_read", cut)
    refused(path, "became shorter while it was read")


def test_a_system_that_cannot_contain_refuses_external_data(folder, monkeypatch):
    monkeypatch.setattr(external_data, "_CAN_CONTAIN", False)
    refused(save(folder, model()), "which this system cannot contain. Save the model as one file")


def test_no_descriptor_stays_open(folder):
    path, before = save(folder, many(30)), len(list(Path("/proc/self/fd").iterdir()))
    contain(path)
    refused(save(folder, model(link_folder(folder))), "symbolic link")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
