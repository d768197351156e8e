"""Reference pairs that published models come with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convoy.contract.errors import DataError
from convoy.export.adopt.pairs import Pair, check_pairs, reference_pairs


@pytest.fixture
def foreign(net):
    built = net(9).features()
    built.add("Flatten")
    return built.head().model([1, 3, 8, 9], ir=3, constants_as_inputs=True)


@pytest.fixture
def pair(foreign, run) -> Pair:
    given = np.random.default_rng(0).standard_normal((1, 3, 8, 9)).astype(np.float32)
    (output,) = run(foreign, data=given).values()
    return Pair("test_data_set_0", (given,), (output,))


def write(folder, pair: Pair, names=("", "")) -> None:
    folder.mkdir(parents=True)
    for half, arrays, name in (("input", pair.inputs, names[0]), ("output", pair.outputs, names[1])):
        for i, array in enumerate(arrays):
            (folder / f"{half}_{i}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def test_pairs_are_found_beside_a_model_and_pass(tmp_path, foreign, pair):
    for i in (0, 2, 10):
        write(tmp_path / f"test_data_set_{i}", pair, ("data", foreign.graph.output[0].name))
    np.savez(tmp_path / "test_data_0.npz", inputs=np.stack(pair.inputs), outputs=np.stack(pair.outputs))
    pairs = reference_pairs(tmp_path)
    assert [found.name for found in pairs] == ["test_data_0.npz", "test_data_set_0", "test_data_set_2", "test_data_set_10"]
    checks = check_pairs(foreign.SerializeToString(), pairs)
    assert [check.verdict for check in checks] == ["passed"] * 4
    assert all(check.measured <= check.limit for check in checks)
    assert reference_pairs(tmp_path / "test_data_set_2")[0].inputs[0].shape == (1, 3, 8, 9)
    assert reference_pairs(tmp_path / "test_data_0.npz")[0].outputs[0].shape == (1, 5)
    (tmp_path / "empty").mkdir()
    assert reference_pairs(tmp_path / "empty") == ()


def test_a_pair_of_another_model_fails(foreign, pair):
    other = Pair(pair.name, pair.inputs, (pair.outputs[0][:, ::-1].copy(),))
    (check,) = check_pairs(foreign.SerializeToString(), (other,))
    assert check.verdict == "failed"
    assert check.measured > check.limit
    assert "1 other decisions" in check.found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pair: Pair("p", (pair.inputs[0][:, :2],), pair.outputs), "ONNX Runtime fails"),
        (lambda pair: Pair("p", (pair.inputs[0].astype(np.float64),), pair.outputs), "ONNX Runtime fails"),
        (lambda pair: Pair("p", pair.inputs * 2, pair.outputs), "expected a pair with 1 inputs"),
        (lambda pair: Pair("p", pair.inputs, pair.outputs * 2), "2 in the pair"),
        (lambda pair: Pair("p", pair.inputs, (pair.outputs[0][:, :4],)), r"expected float32 \[1, 4\]"),
        (lambda pair: Pair("p", (pair.inputs[0] * np.nan,), pair.outputs), "not finite"),
    ],
)
def test_a_pair_that_does_not_fit_fails_and_is_not_skipped(foreign, pair, change, says):
    import re

    (check,) = check_pairs(foreign.SerializeToString(), (change(pair),))
    assert check.verdict == "failed"
    assert re.search(says, check.found)


def test_a_small_difference_passes_and_a_larger_one_does_not(foreign, pair):
    scale = np.abs(pair.outputs[0]).max()
    for factor, verdict in ((0.5e-4, "passed"), (3e-3, "failed")):
        moved = Pair("p", pair.inputs, ((pair.outputs[0] + factor * scale).astype(np.float32),))
        assert check_pairs(foreign.SerializeToString(), (moved,))[0].verdict == verdict


def test_damaged_pairs_are_refused_by_name(tmp_path, pair):
    write(tmp_path / "test_data_set_0", pair)
    (tmp_path / "test_data_set_0" / "output_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match=r"output_0\.pb"):
        reference_pairs(tmp_path)
    (tmp_path / "test_data_set_0" / "output_0.pb").unlink()
    with pytest.raises(DataError, match="lacks a half"):
        reference_pairs(tmp_path)
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    with pytest.raises(DataError, match="inputs and outputs"):
        reference_pairs(tmp_path / "x.npz")


def test_a_tensor_that_points_to_another_file_is_refused(tmp_path, pair):
    write(tmp_path / "test_data_set_0", pair)
    tensor = onnx.TensorProto(name="x", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(DataError, match="points to another file"):
        reference_pairs(tmp_path)
