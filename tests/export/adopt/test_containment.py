"""Foreign files: good ones pass unchanged, each kind of bad one is refused by name, quickly, in little memory."""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from convoy.contract.errors import ExportError
from convoy.export.adopt.containment import contain, read_contained
from convoy.export.adopt.limits import Limits


def valid() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17], producer_name: "test">
        net (float[N,3,8,8] image) => (float[N,4] logits)
        {
            wide = Constant<value = int64[2] {0, 144}>()
            features = Conv(image, kernel)
            active = Relu(features)
            flat = Reshape(active, wide)
            logits = MatMul(flat, weight)
        }
        """
    )
    for name, shape in (("kernel", (4, 3, 3, 3)), ("weight", (144, 4))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model


def text(body: str, *, initializers: str = "", opsets: str = '"" : 17') -> bytes:
    source = (
        f"<ir_version: 8, opset_import: [{opsets}]> net (float[N,3,8,8] image) => (float[N] logits) {initializers} {{ {body} }}"
    )
    return parser.parse_model(source).SerializeToString()


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[], bytes]:
    def build() -> bytes:
        model = valid()
        change(model)
        return model.SerializeToString()

    return build


def kernel(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def zip_of(name: str) -> Callable[[], bytes]:
    def build() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, b"x" * 100)
        return buffer.getvalue()

    return build


def claim(dims: list[int]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        del kernel(model).dims[:]
        kernel(model).dims.extend(dims)

    return change


def sparse(dims: list[int], n: int = 1) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        values = numpy_helper.from_array(np.ones(n, np.float32), "giant")
        indices = numpy_helper.from_array(np.zeros(n, np.int64), "")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))

    return change


def nested(depth: int) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["end"])], "leaf", [], [helper.make_empty_tensor_value_info("end")]
    )
    for level in range(depth):
        choose = helper.make_node("If", ["flag"], [f"y{level}"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([choose], f"g{level}", [], [helper.make_empty_tensor_value_info(f"y{level}")])
        if len(graph.SerializeToString()) > 2**20:
            raise AssertionError("the test's own model grows too fast")
    model = valid()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node.extend(graph.node)
    return model.SerializeToString()


def deep_messages(depth: int) -> bytes:
    """A graph in an attribute in a node in a graph and so on, by lengths alone."""
    body = b""
    for _ in range(depth):
        attribute = b"\x32" + varint(len(body)) + body  # AttributeProto.g
        node = b"\x2a" + varint(len(attribute)) + attribute  # NodeProto.attribute
        body = b"\x0a" + varint(len(node)) + node  # GraphProto.node
    return b"\x08\x08\x3a" + varint(len(body)) + body  # ModelProto.graph


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def functions(*bodies: tuple[str, list[str]]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        for name, calls in bodies:
            nodes = [
                helper.make_node(call, [f"v{i}"], [f"v{i + 1}"], domain="" if call == "Relu" else "local")
                for i, call in enumerate(calls)
            ]
            model.functions.append(helper.make_function("local", name, ["v0"], [f"v{len(calls)}"], nodes, opsets))
        model.opset_import.append(helper.make_opsetid("local", 1))
        model.graph.node.append(helper.make_node(bodies[-1][0], ["logits"], ["more"], domain="local"))

    return change


def packed_bomb() -> bytes:
    ones = b"\x01" * 2**24  # 16 MB on disk, 128 MB as int64
    tensor = b"".join(b"\x3a" + varint(len(ones)) + ones for _ in range(1))
    graph = b"".join(b"\x2a" + varint(len(tensor)) + tensor for _ in range(1))
    return b"\x08\x08\x3a" + varint(len(graph)) + graph


def swap_first_nodes(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[0], nodes[2], nodes[1], *nodes[3:]])


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "found an empty one"),
    "cut short": (lambda: valid().SerializeToString()[:-700], "cut short"),
    "half a header": (lambda: valid().SerializeToString()[:1], "cut short or damaged"),
    "random": (lambda: random.Random(0).randbytes(4096), "expected"),
    "zeros": (lambda: bytes(4096), "expected"),
    "text": (lambda: b"\n".join([b"hello world"] * 50), "expected"),
    "no graph": (lambda: b"\x08\x08", "found none: it is no ONNX model"),
    "lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    "html": (lambda: b"<!DOCTYPE html><html></html>", "HTML or XML document: .*download"),
    "pytorch zip": (zip_of("archive/data.pkl"), r"PyTorch checkpoint.*torch\.onnx\.export"),
    "zip": (zip_of("model.onnx"), "zip archive: unpack it"),
    "keras": (zip_of("config.json"), "Keras archive.*tf2onnx"),
    "numpy archive": (zip_of("a.npy"), "NumPy archive"),
    "pickle": (lambda: b"\x80\x02}q\x00.", "Python pickle"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5.*tf2onnx"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite.*tf2onnx"),
    "safetensors": (lambda: (60).to_bytes(8, "little") + b'{"w":{"dtype":"F32"}}' + bytes(64), "safetensors.*without a network"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(64), "gzip archive"),
    "2 GB claim": (changed(claim([2**29])), "expected 2,147,483,648 bytes.*found 432"),
    "negative dims": (changed(claim([-1, 108])), r"length 0 or more, found \[-1, 108\]"),
    "overflowing dims": (changed(claim([2**62, 2**62, 2**62])), "expected 3.* bytes for dims .*found 432"),
    "zero times huge": (changed(claim([2**62, 2**62, 0])), "expected 0 bytes.*found 432"),
    "too many axes": (changed(claim([1] * 40 + [108])), "at most 32 axes"),
    "short raw data": (changed(lambda m: setattr(kernel(m), "raw_data", b"1234")), "expected 432 bytes .*found 4"),
    "two storages": (changed(lambda m: kernel(m).float_data.append(1)), "found them in float_data and raw_data"),
    "wrong storage": (
        changed(lambda m: (kernel(m).ClearField("raw_data"), kernel(m).int64_data.extend([1] * 108))),
        "float_data, found",
    ),
    "unknown datatype": (changed(lambda m: setattr(kernel(m), "data_type", 99)), "found number 99"),
    "undefined datatype": (changed(lambda m: setattr(kernel(m), "data_type", 0)), "found number 0"),
    "segment": (changed(lambda m: setattr(kernel(m).segment, "end", 5)), "segment"),
    "sparse giant": (changed(sparse([2**20, 2**20])), "when dense, found 4,398,046,511,104 from 1 stored"),
    "sparse negative": (changed(sparse([-5])), "length 0 or more"),
    "many sparse": (
        changed(
            lambda m: [sparse([2**28 - i])(m) or setattr(m.graph.sparse_initializer[i].values, "name", f"s{i}") for i in range(9)]
        ),
        "together when dense",
    ),
    "packed integers": (packed_bomb, "expected at most .* bytes in memory"),
    "many empty nodes": (lambda: b"\x08\x08\x3a" + varint(2 * 3_000_000) + b"\x0a\x00" * 3_000_000, "expected at most .* fields"),
    "deep messages": (lambda: deep_messages(200), "messages inside each other"),
    "deep graphs": (lambda: nested(10), "nested 8 deep at most"),
    "ConstantOfShape": (
        lambda: text("s = Constant<value = int64[2] {1000000, 1000000}>() logits = ConstantOfShape(s)"),
        "4,000,000,000,000",
    ),
    "Expand": (
        lambda: text("s = Constant<value_ints = [1000000, 100000]>() c = Constant<value_float = 1.0>() logits = Expand(c, s)"),
        "400,000,000,000",
    ),
    "Tile": (lambda: text("r = Constant<value_ints = [1, 9000, 9000, 9000]>() logits = Tile(image, r)"), "Tile node"),
    "Range": (
        lambda: text(
            "a = Constant<value_int = 0>() b = Constant<value_int = 9000000000000>() "
            "d = Constant<value_int = 1>() logits = Range(a, b, d)"
        ),
        "Range node",
    ),
    "Resize": (
        lambda: text("s = Constant<value_floats = [1.0, 1.0, 100000.0, 100000.0]>() logits = Resize(image, , s)"),
        "Resize node",
    ),
    "Pad": (lambda: text("p = Constant<value_ints = [0,0,0,0,0,0,9000000,9000000]>() logits = Pad(image, p)"), "Pad node"),
    "padding attribute": (
        lambda: text("logits = MaxPool<kernel_shape = [3, 3], pads = [1000000, 0, 0, 0]>(image)"),
        "pads of at most 65,536",
    ),
    "RandomNormal": (lambda: text("logits = RandomNormal<shape = [100000, 100000]>()"), "RandomNormal node"),
    "OneHot": (
        lambda: text(
            "i = Constant<value_ints = [1, 2, 3]>() d = Constant<value_int = 9000000000>() "
            "v = Constant<value_floats = [0.0, 1.0]>() logits = OneHot(i, d, v)"
        ),
        "OneHot node",
    ),
    "computed shape": (
        lambda: text(
            "a = Constant<value_ints = [1000]>() b = Mul(a, a) c = Mul(b, b) s = Concat<axis = 0>(c, a) logits = ConstantOfShape(s)"
        ),
        "ConstantOfShape node",
    ),
    "outer product": (
        lambda: text(
            "a = Constant<value_ints = [100000, 1]>() b = Constant<value_ints = [1, 100000]>() "
            "x = ConstantOfShape(a) y = ConstantOfShape(b) logits = Mul(x, y)"
        ),
        "Mul node",
    ),
    "many constants": (
        lambda: text(
            "".join(f"s{i} = Constant<value = int64[1] {{200000000}}>() c{i} = ConstantOfShape(s{i}) " for i in range(4))
            + "logits = Relu(image)"
        ),
        "constants of 2,147,483,648 bytes together",
    ),
    "giant in a branch": (
        lambda: text(
            "f = Constant<value = bool {1}>() logits = If (f) <then_branch = a () => (float[N] y) { "
            "s = Constant<value_ints = [1000000, 1000000]>() y = ConstantOfShape(s) }, "
            "else_branch = b () => (float[N] z) { z = Identity(image) }>"
        ),
        "ConstantOfShape node",
    ),
    "giant input": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[3], "dim_value", 2**40)),
        "input 'image'",
    ),
    "negative input": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[3], "dim_value", -7)),
        "length 0 or more",
    ),
    "cycle": (lambda: text("a = Add(image, b) b = Relu(a) logits = Relu(b)"), "cycles, found one"),
    "self loop": (lambda: text("a = Add(image, a) logits = Relu(a)"), "cycles, found one"),
    "cycle through a branch": (
        lambda: text(
            "f = Constant<value = bool {1}>() a = If (f) <then_branch = t () => (float y) { y = Relu(b) }, "
            "else_branch = e () => (float z) { z = Identity(image) }> b = Relu(a) logits = Relu(b)"
        ),
        "cycles, found one",
    ),
    "unsorted": (changed(swap_first_nodes), "order of their work, found the Relu node 'active' before the Conv node 'features'"),
    "duplicate value": (lambda: text("a = Relu(image) a = Sigmoid(image) logits = Relu(a)"), "'a' made twice"),
    "duplicate initialiser": (changed(lambda m: m.graph.initializer.append(kernel(m))), "'kernel' twice"),
    "initialiser made again": (
        changed(lambda m: m.graph.node.append(helper.make_node("Relu", ["image"], ["kernel"]))),
        "'kernel' made twice",
    ),
    "undefined input": (lambda: text("logits = Relu(nothing)"), "something makes, found 'nothing'"),
    "undefined output": (lambda: text("a = Relu(image)"), "outputs of the graph that something makes, found 'logits'"),
    "no nodes": (changed(lambda m: m.graph.ClearField("node")), "found 0 nodes"),
    "no inputs": (changed(lambda m: m.graph.ClearField("input")), "0 inputs"),
    "unnamed input": (changed(lambda m: setattr(m.graph.input[0], "name", "")), "found an empty one"),
    "unknown operator": (lambda: text("logits = Frobnicate(image)"), "Frobnicate node 'logits', which ai.onnx 17 does not have"),
    "operator of the future": (lambda: text("logits = Gelu(image)"), "Gelu node"),
    "operator of the past": (lambda: text("s = Constant<value_floats = [1.0]>() logits = Upsample(image, s)"), "Upsample node"),
    "custom domain": (lambda: text("logits = evil.Run(image)", opsets='"" : 17, "evil" : 1'), "Run node 'logits', which evil 1"),
    "domain without import": (lambda: text("logits = evil.Run(image)"), "of 'evil'"),
    "context with a path": (
        lambda: text(
            'logits = com.microsoft.EPContext<ep_cache_context = "/etc/passwd", embed_mode = 0>(image)',
            opsets='"" : 17, "com.microsoft" : 1',
        ),
        "EPContext node",
    ),
    "node without inputs": (lambda: text("logits = Relu()"), "1 to 1 inputs .* found 0"),
    "operator sets twice": (
        changed(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 13))),
        "'ai.onnx'.*more than once",
    ),
    "no operator set": (changed(lambda m: m.ClearField("opset_import")), "imports ONNX's own operator set, found"),
    "opset 6": (changed(lambda m: setattr(m.opset_import[0], "version", 6)), "opset 7 to 21, found 6.*convert_version"),
    "opset 22": (changed(lambda m: setattr(m.opset_import[0], "version", 22)), "opset 7 to 21, found 22.*opset_version=21"),
    "opset of a billion": (changed(lambda m: setattr(m.opset_import[0], "version", 10**9)), "opset 7 to 21"),
    "ir 99": (changed(lambda m: setattr(m, "ir_version", 99)), "found 99"),
    "ir 0": (changed(lambda m: m.ClearField("ir_version")), "found 0"),
    "function that calls itself": (changed(functions(("F", ["Relu", "F"]))), r"calls itself \(F -> F\)"),
    "functions in a ring": (changed(functions(("F", ["G"]), ("G", ["F"]))), "calls itself"),
    "functions that double": (
        changed(functions(("F0", ["Relu"] * 4), *((f"F{i + 1}", [f"F{i}"] * 10) for i in range(20)))),
        "local functions written out, found 4",
    ),
    "function for Conv": (
        changed(lambda m: m.functions.append(helper.make_function("", "Conv", ["x"], ["x"], [], [helper.make_opsetid("", 17)]))),
        "replace a standard operator",
    ),
    "attribute twice": (
        changed(lambda m: m.graph.node[1].attribute.extend([helper.make_attribute("group", 1)] * 2)),
        "each attribute once",
    ),
    "NUL in a name": (changed(lambda m: setattr(m.graph.node[1], "name", "a\0b")), r"printable characters, found 'a\\x00b'"),
    "escape in a name": (changed(lambda m: setattr(m.graph.node[1], "name", "\x1b[2J")), "printable characters"),
    "right-to-left name": (changed(lambda m: setattr(m.graph.node[1], "name", "a\u202eb")), "printable characters"),
    "long name": (changed(lambda m: setattr(m.graph.node[1], "name", "a" * 5000)), "names of 4,096 bytes at most"),
    "no UTF-8": (lambda: valid().SerializeToString().replace(b"features", b"fe\xff\xfeures"), "names in UTF-8"),
    "huge metadata": (changed(lambda m: m.metadata_props.add(key="k", value="v" * 2**21)), "names, documentation and metadata"),
    "training": (changed(lambda m: m.training_info.add()), "training information"),
    "group wire type": (lambda: b"\x08\x08\x3b\x3c", "wire type 3"),
    "endless varint": (lambda: b"\x08" + b"\xff" * 30, "ten bytes at most"),
}

MEMORY_BYTES = 2**29  # data memory that the system grants; a giant among the files asks for a thousand times as much
PEAK_KIB = 320 * 1024  # the interpreter with onnx and numpy takes a third of it

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from convoy.contract.errors import ExportError
from convoy.export.adopt.containment import contain
from convoy.export.adopt.limits import Limits

resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
limits = Limits(max_decoded_bytes=2**26, max_fields=100_000, max_text_bytes=2**20)
results = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.perf_counter()
    try:
        contain(path, limits)
        found = "accepted", ""
    except Exception as error:
        found = type(error).__name__, str(error)
    results[path.name] = [*found, time.perf_counter() - started]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"results": results, "peak_kib": int(status["VmHWM"].split()[0])}))
"""


linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks of memory are Linux's")


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Every hostile file, looked at by one process that the system holds to little memory."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (build, _) in HOSTILE.items():
        (folder / name).write_bytes(build())
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(MEMORY_BYTES)], capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@linux
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name_and_quickly(name, looked_at):
    kind, message, seconds = looked_at["results"][name]
    assert kind == "ExportError", message
    assert re.search(HOSTILE[name][1], message, re.DOTALL), message
    assert seconds < 10
    assert len(message) < 2500


@linux
def test_all_hostile_files_together_take_little_memory(looked_at):
    assert looked_at["peak_kib"] < PEAK_KIB


def save(folder: Path, content: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_a_good_file_comes_back_whole_and_the_same_each_time(tmp_path):
    path = save(tmp_path, valid().SerializeToString())
    first = read_contained(path)
    assert first == read_contained(path) == contain(path)
    assert onnx.ModelProto.FromString(first) == valid()


def test_fields_that_onnx_does_not_know_are_left_out(tmp_path):
    extra = b"\xfa\x7f" + varint(6) + b"secret"  # field 2047
    assert contain(save(tmp_path, valid().SerializeToString() + extra)) == valid().SerializeToString(deterministic=True)


ALLOWED = {
    "If": """
        f = Constant<value = bool {1}>()
        logits = If (f) <
            then_branch = a () => (float[N] y) { y = Relu(image) },
            else_branch = b () => (float[N] z) { z = Identity(image) }
        >
    """,
    "Loop": """
        m = Constant<value_int = 3>()
        c = Constant<value = bool {1}>()
        logits = Loop (m, c, image) <
            body = g (int64 i, bool go, float[N,3,8,8] x) => (bool again, float[N,3,8,8] y) { again = Identity(go) y = Add(x, x) }
        >
    """,
    "computed shapes": """
        s = Shape<start = 0, end = 1>(image)
        o = Constant<value_ints = [-1]>()
        t = Concat<axis = 0>(s, o)
        logits = Reshape(image, t)
    """,
    "Resize": "z = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() logits = Resize(image, , z)",
}


@pytest.mark.parametrize("body", ALLOWED.values(), ids=ALLOWED)
def test_control_flow_and_computed_shapes_are_allowed(body, tmp_path):
    assert contain(save(tmp_path, text(body))) == text(body)


def test_local_functions_are_allowed(tmp_path):
    content = changed(functions(("F0", ["Relu"]), ("F1", ["F0", "F0"])))()
    assert len(onnx.ModelProto.FromString(contain(save(tmp_path, content))).functions) == 2


@pytest.mark.parametrize("opset", [7, 9, 12, 18, 21])
def test_all_supported_operator_sets_are_read(opset, tmp_path):
    content = text("logits = Relu(image)", opsets=f'"" : {opset}')
    assert contain(save(tmp_path, content)) == content


@pytest.mark.parametrize(
    ("dtype", "field", "entries"),
    [
        (TensorProto.FLOAT, "float_data", 3), (TensorProto.COMPLEX64, "float_data", 6), (TensorProto.DOUBLE, "double_data", 3),
        (TensorProto.INT64, "int64_data", 3), (TensorProto.UINT32, "uint64_data", 3), (TensorProto.INT8, "int32_data", 3),
        (TensorProto.FLOAT16, "int32_data", 3), (TensorProto.BOOL, "int32_data", 3), (TensorProto.INT4, "int32_data", 2),
    ],
)  # fmt: skip
def test_a_typed_field_must_hold_as_many_values_as_the_dims_say(dtype, field, entries, tmp_path):
    for count, fits in ((entries, True), (entries - 1, False), (entries + 1, False)):
        model = valid()
        tensor = TensorProto(name="more", data_type=dtype, dims=[3])
        getattr(tensor, field).extend([1] * count)
        model.graph.initializer.append(tensor)
        path = save(tmp_path, model.SerializeToString())
        if fits:
            assert contain(path)
        else:
            with pytest.raises(ExportError, match=f"expected {entries} values"):
                contain(path)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "/dev/zero"):
        with pytest.raises(ExportError, match="folder, pipe, socket or device"):
            read_contained(tmp_path / name)
    with pytest.raises(ExportError, match="found no file of that name"):
        read_contained(tmp_path / "absent.onnx")


def test_a_sparse_file_of_a_terabyte_is_refused_unread(tmp_path):
    path = save(tmp_path, b"\x08\x08")
    os.truncate(path, 2**40)
    with pytest.raises(ExportError, match="found 1,099,511,627,776"):
        read_contained(path)


def test_the_model_itself_may_be_a_link(tmp_path):
    path = save(tmp_path, valid().SerializeToString(), "blob")
    (tmp_path / "model.onnx").symlink_to(path)
    assert onnx.ModelProto.FromString(read_contained(tmp_path / "model.onnx")) == valid()


def test_a_refusal_from_the_contained_process_names_the_file_as_the_caller_did(tmp_path, monkeypatch):
    save(tmp_path, HOSTILE["cycle"][0]())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"^model\.onnx: expected a graph without cycles"):
        read_contained(Path("model.onnx"))


def test_a_file_that_needs_more_memory_than_its_process_has_is_refused(tmp_path):
    model = valid()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2**25, np.float32), "heavy"))
    path = save(tmp_path, model.SerializeToString())
    with pytest.raises(ExportError, match="memory"):
        read_contained(path, Limits(memory_bytes=2**27, memory_per_payload_byte=0))
    assert len(read_contained(path)) > 2**27


def test_damaged_bytes_give_a_model_or_a_refusal_and_nothing_else(tmp_path):
    """Flips, cuts, insertions and doublings of a good file's bytes; the seed makes each run the same."""
    good = bytearray(valid().SerializeToString(deterministic=True))
    rng = random.Random(1)
    path, accepted = tmp_path / "model.onnx", 0
    header = good.find(b"image") + 400  # most bytes are weights, which may be anything
    for round_ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data)) if round_ % 3 == 0 else rng.randrange(min(header, len(data)))
            action = rng.randrange(5)
            if action == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif action == 1:
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            elif action == 2:
                del data[at : at + rng.randint(1, 8)]
            elif action == 3:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                data[at:at] = data[at : at + rng.randint(1, 64)]
        path.write_bytes(data)
        try:
            contained = contain(path)
        except ExportError:
            continue
        accepted += 1
        assert onnx.ModelProto.FromString(contained).graph.node
    assert 0 < accepted < 3000


def test_every_cut_of_a_good_file_is_refused(tmp_path):
    good = valid().SerializeToString()
    for size in [*range(1, 300), *range(300, len(good), 37)]:
        with pytest.raises(ExportError):
            contain(save(tmp_path, good[:size]))
