from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from convoy.contract.errors import UsageError
from convoy.export.graph.capture import quiet
from convoy.export.graph.targets import OPSET_VERSION, check_targets
from convoy.training.check_reader.decoder import Decoder
from convoy.training.check_reader.grammar import compile_grammar
from convoy.training.check_reader.lattice import Lattice
from convoy.training.check_reader.search import Reading

ALPHABET = "0123,$"
RULES = 'silent "," "$"\ndigit = "0".."3"\namount = ["$"@0.5] digit{1,3} ["," digit{2}]'


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(Lattice(compile_grammar(RULES), ALPHABET), n_best=3).eval()


@pytest.fixture(scope="module")
def path(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    batch, frames = torch.export.Dim("batch"), torch.export.Dim("frames")
    example = torch.zeros(3, 7, len(ALPHABET) + 1), torch.tensor([7, 2, 5])
    with quiet():
        program = torch.export.export(decoder, example, dynamic_shapes=({0: batch, 1: frames}, {0: batch}), strict=False)
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET_VERSION, output_names=list(Reading._fields), optimize=False, verbose=False
        )
    assert exported is not None
    exported.save(path)
    return path


@pytest.fixture(scope="module")
def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_the_exported_decoder_is_standard_onnx_that_every_target_loads(path: Path) -> None:
    model = onnx.load(path)
    check_targets(model)
    assert sum(node.op_type == "Scan" for node in model.graph.node) == 1 + 3 + 1  # backward, one for each string, placing
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Loop", "If"})


@pytest.mark.parametrize(("n_fields", "n_frames"), [(1, 1), (1, 2), (2, 1), (1, 60), (5, 17), (64, 30)])
def test_onnx_runtime_reads_what_pytorch_reads(
    session: onnxruntime.InferenceSession, decoder: Decoder, n_fields: int, n_frames: int
) -> None:
    generator = torch.Generator().manual_seed(n_fields * 100 + n_frames)
    scores = 3 * torch.randn(n_fields, n_frames, len(ALPHABET) + 1, generator=generator)
    lengths = torch.randint(0, n_frames + 1, (n_fields,), generator=generator)
    lengths[0] = n_frames
    expected = decoder.lattice.n_best(scores, lengths, 3)
    actual = Reading(
        *map(torch.from_numpy, session.run(list(Reading._fields), {"scores": scores.numpy(), "lengths": lengths.numpy()}))
    )
    for name, reference in expected._asdict().items():
        value = getattr(actual, name)
        assert value.dtype == reference.dtype
        if reference.is_floating_point():
            np.testing.assert_allclose(value, reference, atol=1e-4, rtol=0)
        else:
            assert torch.equal(value, reference), name


@pytest.mark.parametrize("value", [0.0, -torch.inf])
def test_onnx_runtime_breaks_ties_as_pytorch_does(session: onnxruntime.InferenceSession, decoder: Decoder, value: float) -> None:
    scores, lengths = torch.zeros(2, 9, len(ALPHABET) + 1), torch.tensor([9, 4])
    scores[:, 2:, 3:] = value
    expected = decoder.lattice.n_best(scores, lengths, 3)
    actual = session.run(None, {"scores": scores.numpy(), "lengths": lengths.numpy()})
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_stands_behind_a_fields_end_changes_nothing_in_onnx_runtime(session: onnxruntime.InferenceSession) -> None:
    scores = 3 * torch.randn(1, 20, len(ALPHABET) + 1, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([scores, torch.full((1, 30, len(ALPHABET) + 1), torch.nan)], 1)
    lengths = np.array([20])
    short, padded = (session.run(None, {"scores": s.numpy(), "lengths": lengths}) for s in (scores, wide))
    for a, b in zip(short, padded, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_decoder_needs_amounts_of_limited_length_and_one_string_at_least() -> None:
    with pytest.raises(UsageError, match=r"expected amounts of limited length, found amounts of any"):
        Decoder(Lattice(compile_grammar('amount = "1"+'), "1"))
    with pytest.raises(UsageError, match="expected n_best of at least 1, found 0"):
        Decoder(Lattice(compile_grammar('amount = "1"'), "1"), n_best=0)
