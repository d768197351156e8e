"""What a foreign model is, found out in a process that may fail."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from convoy.contract.errors import ExportError
from convoy.export.adopt.inspection import Trial, Value, inspect
from convoy.export.adopt.limits import Limits


def text(body: str, *, head: str = "(float[N,3,H,W] image) => (float logits)", opsets: str = '"" : 17') -> bytes:
    source = f'<ir_version: 8, opset_import: [{opsets}], producer_name: "test", producer_version: "1">net {head} {{ {body} }}'
    model = parser.parse_model(source)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model.SerializeToString()


def network() -> bytes:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", 16]),
            helper.make_tensor_value_info("kernel", TensorProto.FLOAT, [4, 3, 3, 3]),  # listed as an input too, as old files do
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "kernel")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="pytorch\n", producer_version="9"
    ).SerializeToString()


def test_the_facts_of_a_network():
    found = inspect(network())
    assert found.inputs == (Value("image", "float32", ("N", 3, "H", 16)),)
    assert found.outputs == (Value("logits", "float32", ("N", 4)),)
    assert found.op_types == {"Conv": 1, "Flatten": 1, "GlobalAveragePool": 1, "Relu": 1}
    assert (found.opset_imports, found.ir_version, found.producer) == ({"": 13}, 7, "pytorch 9")
    assert (found.n_parameters, found.n_nodes, found.n_bytes) == (108, 4, len(network()))
    assert found.inference_error == ""
    assert found.trial == Trial({"image": (1, 3, 224, 16)}, (("logits", "float32", (1, 4)),), 0.0, finite=True, error="")


def test_the_shape_of_the_trial_can_be_given():
    assert inspect(network(), shapes={"image": (5, 3, 20, 16)}).trial.outputs == (("logits", "float32", (5, 4)),)


def test_a_trial_that_cannot_be_run_is_a_fact_and_no_refusal():
    trial = inspect(network(), shapes={"image": (5, 4, 20, 16)}).trial
    assert not trial.finite
    assert trial.outputs == ()
    assert "image" in trial.error


def test_infinities_are_told():
    trial = inspect(text("a = Constant<value_float = 0.0>() logits = Div(image, a)"), shapes={"image": (1, 3, 2, 2)}).trial
    assert not trial.finite


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 19, 21])
def test_operator_sets_from_7_to_21_are_run(opset):
    found = inspect(text("a = Relu(image) logits = GlobalAveragePool(a)", opsets=f'"" : {opset}'))
    assert found.trial.error == ""
    assert found.opset_imports == {"": opset}


def test_branches_and_loops_are_run():
    body = """
        f = Constant<value = bool {1}>()
        m = Constant<value_int = 3>()
        a = If (f) <
            then_branch = t () => (float y) { y = Relu(image) },
            else_branch = e () => (float z) { z = Identity(image) }
        >
        logits = Loop (m, f, a) <
            body = g (int64 i, bool go, float[N,3,H,W] x) => (bool again, float[N,3,H,W] y2) { again = Identity(go) y2 = Add(x, x) }
        >
    """
    found = inspect(text(body), shapes={"image": (1, 3, 4, 4)})
    assert found.trial.error == ""
    assert found.op_types == {"Add": 1, "Constant": 2, "Identity": 2, "If": 1, "Loop": 1, "Relu": 1}


def test_a_quantised_network_with_the_runtimes_own_operators_is_run():
    body = """
        s = Constant<value_float = 0.1>()
        z = Constant<value = uint8 {128}>()
        q = QuantizeLinear(image, s, z)
        p = com.microsoft.QLinearGlobalAveragePool<channels_last = 0>(q, s, z, s, z)
        logits = DequantizeLinear(p, s, z)
    """
    found = inspect(text(body, opsets='"" : 17, "com.microsoft" : 1'))
    assert found.op_types["com.microsoft.QLinearGlobalAveragePool"] == 1
    assert found.trial.error == ""


def test_an_old_file_that_lists_no_initialiser_as_an_input_is_taken_as_runtimes_take_it():
    model = onnx.ModelProto.FromString(network())
    model.ir_version = 3
    del model.graph.input[1]
    found = inspect(model.SerializeToString())
    assert (found.ir_version, found.trial.error) == (3, "")


def test_a_scalar_output_is_compared():
    found = inspect(text("logits = ReduceSum<keepdims = 0>(image)"), shapes={"image": (1, 3, 2, 2)})
    assert (found.trial.outputs, found.trial.max_abs_diff) == ((("logits", "float32", ()),), 0.0)


def test_what_inference_finds_wrong_is_a_fact():
    model = onnx.ModelProto.FromString(network())
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    found = inspect(model.SerializeToString())
    assert "5" in found.inference_error


def test_what_the_checker_refuses_is_refused():
    with pytest.raises(ExportError, match=r"ONNX's own checker accepts, found: .*bogus"):
        inspect(text("logits = Relu<bogus = 1>(image)"))


def test_what_the_runtime_cannot_load_is_refused():
    with pytest.raises(ExportError, match=r"file that ONNX Runtime loads, found: .*"):
        inspect(text('a = Constant<value_strings = ["x"]>() logits = Cast<to = 2>(image) b = StringNormalizer(a)'))


def test_a_giant_that_only_inference_sees_is_refused():
    """The static walk does not follow ConvTranspose; shape inference does."""
    body = "logits = ConvTranspose<strides = [60000, 60000]>(image, kernel)"
    model = onnx.ModelProto.FromString(text(body, head="(float[N,3,64,64] image) => (float logits)"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 1, 3, 3), np.float32), "kernel"))
    with pytest.raises(ExportError, match="found 'logits' of shape"):
        inspect(model.SerializeToString())


def test_a_constant_that_only_the_runtime_computes_meets_the_memory_limit():
    """Neither the static walk nor inference follows ReduceProd to the shape; what ONNX Runtime folds is bounded by the system."""
    body = """
        n = Constant<value_ints = [200000, 30000]>()
        k = ReduceProd<keepdims = 1>(n)
        logits = ConstantOfShape(k)
    """
    with pytest.raises(ExportError, match=r"memory|allocate") as told:
        inspect(text(body), shapes={"image": (1, 3, 4, 4)})
    assert len(str(told.value)) < 1000


def test_a_loop_without_end_meets_the_deadline():
    body = """
        m = Constant<value_int = 9223372036854775807>()
        c = Constant<value = bool {1}>()
        logits = Loop (m, c, image) <
            body = g (int64 i, bool go, float[N,3,H,W] x) => (bool again, float[N,3,H,W] y) { again = Identity(go) y = Relu(x) }
        >
    """
    with pytest.raises(ExportError, match=r"end within 6 s|processor time"):
        inspect(text(body), limits=Limits(deadline_s=6.0))


def test_bytes_that_were_not_contained_are_checked_again():
    with pytest.raises(ExportError, match="cycles"):
        inspect(text("a = Add(image, logits) logits = Relu(a)"))
