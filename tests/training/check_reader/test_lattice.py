from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from convoy.contract.errors import DataError, UsageError
from convoy.training.check_reader.grammar import Grammar, compile_grammar, load_grammar
from convoy.training.check_reader.lattice import Lattice
from convoy.training.check_reader.machine import compose
from convoy.training.check_reader.search import Reading

ALPHABET = "12,"
GRAMMARS = {
    "weighted": 'silent ","\namount = ("1" | "2"@0.3){1,2} ["," @0.7 ("1" | "2")] | "2" ","',
    "empty string too": 'amount = ["1" | "2" "2"]',
    "twins": 'amount = "1"{1,3} | "1" "," "1"',
    "without end": 'silent ","\namount = ("1" | "2" | ",")*',
    "written twice": 'silent ","\namount = a | a | a@0.5\na = ("1" | "2")* ["," ("1" | "2")+]',
    "one sentence": 'amount = "2" "1"',
    "nothing": 'amount = ""',
}


def fields(n: int, frames: int = 5, *, seed: int = 0, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(n, frames, len(ALPHABET) + 1, dtype=torch.float64, generator=generator)
    return scores, torch.randint(0, frames + 1, (n,), generator=generator)


def every_path(frames: int) -> tuple[list[str], np.ndarray]:
    paths = list(itertools.product(range(len(ALPHABET) + 1), repeat=frames))
    texts = ["".join(ALPHABET[c - 1] for c, _ in itertools.groupby(path) if c) for path in paths]
    return texts, np.array(paths, dtype=int).reshape(len(paths), frames)


PATHS = [every_path(frames) for frames in range(6)]


def by_brute_force(grammar: Grammar, scores: Tensor) -> tuple[dict[str, float], dict[str, float], float]:
    """Of each string the score of the best path and the log-sum over its paths, and the log-sum over all."""
    texts, paths = PATHS[len(scores)]
    best: dict[str, float] = {}
    total: dict[str, float] = {}
    weights = {text: grammar.automaton.score(text) for text in set(texts)}
    values = scores.numpy()[np.arange(len(scores)), paths].sum(1).tolist() if len(scores) else [0.0]
    for text, value in zip(texts, values, strict=True):
        if weights[text] > -math.inf:
            best[text] = max(best.get(text, -math.inf), value + weights[text])
            total[text] = total.get(text, 0.0) + math.exp(value + weights[text])
    log_sum = math.log(sum(total.values())) if total else -math.inf
    return best, {text: math.log(value) for text, value in total.items()}, log_sum


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_n_best_and_their_posteriors_are_those_of_brute_force(name: str) -> None:
    grammar = compile_grammar(GRAMMARS[name])
    lattice = Lattice(grammar, ALPHABET)
    scores, lengths = fields(170)  # seven grammars: 1,190 lattices
    reading = lattice.n_best(scores, lengths, 6)
    partition = lattice.log_partition(scores, lengths).tolist()
    for field, texts in enumerate(lattice.texts(reading)):
        best, sums, total = by_brute_force(grammar, scores[field, : lengths[field]])
        assert texts == sorted(best, key=lambda text: -best[text])[:6]
        assert partition[field] == pytest.approx(total, abs=1e-6)
        assert reading.path_scores[field, : len(texts)].tolist() == pytest.approx([best[t] - total for t in texts], abs=1e-6)
        assert reading.log_posteriors[field, : len(texts)].tolist() == pytest.approx([sums[t] - total for t in texts], abs=1e-6)
        assert reading.confidence[field] == pytest.approx(math.exp(sums[texts[0]] - total) if texts else 0.0, abs=1e-6)
        assert reading.n_characters[field].tolist() == [len(text) for text in texts] + [0] * (6 - len(texts))
        assert (reading.path_scores[field, len(texts) :] == -math.inf).all()


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_positions_are_those_of_a_path_with_the_path_score(name: str) -> None:
    grammar = compile_grammar(GRAMMARS[name])
    lattice = Lattice(grammar, ALPHABET)
    scores, lengths = fields(40, seed=1)
    reading = lattice.n_best(scores, lengths, 3)
    partition = lattice.log_partition(scores, lengths)
    for field, texts in enumerate(lattice.texts(reading)):
        for place, text in enumerate(texts):
            shown = [0] * int(lengths[field])
            spans = reading.positions[field, place].tolist()
            for (first, behind), symbol in zip(spans, text, strict=False):
                assert 0 <= first < behind <= lengths[field]
                assert not any(shown[first:behind])
                shown[first:behind] = [ALPHABET.index(symbol) + 1] * (behind - first)
            assert "".join(ALPHABET[c - 1] for c, _ in itertools.groupby(shown) if c) == text
            assert all(span == [-1, -1] for span in spans[len(text) :])
            value = sum(float(scores[field, frame, c]) for frame, c in enumerate(shown)) + grammar.automaton.score(text)
            assert value - float(partition[field]) == pytest.approx(float(reading.path_scores[field, place]), abs=1e-6)


@pytest.mark.parametrize("latent", [True, False])
def test_the_loss_is_minus_the_log_posterior_of_all_that_the_label_may_mean(latent: bool) -> None:
    grammar = compile_grammar(GRAMMARS["written twice"])
    lattice = Lattice(grammar, ALPHABET)
    scores, _ = fields(50, seed=2)
    lengths = torch.full((50,), 5)
    losses = lattice.loss(scores, lengths, ["12"] * 50, latent=latent).tolist()
    for field, loss in enumerate(losses):
        _, sums, total = by_brute_force(grammar, scores[field])
        meant = [math.exp(value) for text, value in sums.items() if (text.replace(",", "") if latent else text) == "12"]
        assert loss == pytest.approx(total - math.log(sum(meant)), abs=1e-6)
        assert loss >= 0


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_gradient_is_that_of_the_sum_over_every_path(name: str) -> None:
    grammar = compile_grammar(GRAMMARS[name])
    lattice = Lattice(grammar, ALPHABET)
    scores, lengths = fields(8, seed=3)
    scores.requires_grad_()
    finite = lattice.log_partition(scores, lengths)
    (actual,) = torch.autograd.grad(finite[finite > -math.inf].sum(), scores)
    expected = torch.zeros_like(scores)
    for field, length in enumerate(lengths.tolist()):
        texts, paths = PATHS[length]
        weights = torch.tensor([grammar.automaton.score(text) for text in texts], dtype=torch.float64)
        if length == 0 or not (weights > -math.inf).any():
            continue
        paths_sum = scores[field, torch.arange(length), torch.from_numpy(paths)].sum(1)
        expected += torch.autograd.grad((paths_sum + weights).logsumexp(0), scores)[0]
    torch.testing.assert_close(actual, expected, atol=1e-7, rtol=0)


def test_gradients_agree_with_finite_differences() -> None:
    lattice = Lattice(compile_grammar(GRAMMARS["weighted"]), ALPHABET)
    scores, _ = fields(3, seed=4)
    scores.requires_grad_()
    lengths = torch.tensor([5, 3, 2])
    assert torch.autograd.gradcheck(lambda x: lattice.log_partition(x, lengths), scores)
    assert torch.autograd.gradcheck(lambda x: lattice.log_score(x, lengths, ["1", "21", "2"]), scores)
    assert torch.autograd.gradcheck(lambda x: lattice.loss(x, lengths, ["1", "2,", "2"], latent=[True, False, True]), scores)


def test_a_written_label_scores_as_the_ctc_loss_of_torch() -> None:
    alphabet = "0123456789"
    lattice = Lattice(compile_grammar('amount = ("0".."9")*'), alphabet)
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(7, 40, 11, dtype=torch.float64, generator=generator, requires_grad=True)
    scores = logits.log_softmax(-1)
    lengths = torch.tensor([40, 33, 40, 7, 12, 40, 21])
    labels = ["12", "3", "9911", "7", "", "1234567890", "55"]
    actual = lattice.loss(scores, lengths, labels, latent=False)
    targets = torch.tensor([int(symbol) + 1 for label in labels for symbol in label])
    sizes = torch.tensor([len(label) for label in labels])
    expected = functional.ctc_loss(scores.transpose(0, 1), targets, lengths, sizes, reduction="none")
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(lattice.log_partition(scores, lengths), torch.zeros(7, dtype=torch.float64), atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(actual.sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


def test_what_stands_behind_a_fields_end_changes_nothing() -> None:
    lattice = Lattice(load_grammar("chilean"), "0123456789$.,:-/=#* ")
    generator = torch.Generator().manual_seed(6)
    lengths = torch.tensor([9, 1, 4, 0])
    short = torch.randn(4, 9, 21, generator=generator)
    wide = torch.full((4, 30, 21), math.nan)
    for field, length in enumerate(lengths):
        wide[field, :length] = short[field, :length]
    wide.requires_grad_()
    loss = lattice.loss(wide, lengths, ["123", "4", "17", "5"])
    torch.testing.assert_close(loss, lattice.loss(short, lengths, ["123", "4", "17", "5"]))
    assert loss[3] == math.inf
    loss[:3].sum().backward()
    assert wide.grad is not None
    assert all((wide.grad[field, length:] == 0).all() and wide.grad.isfinite().all() for field, length in enumerate(lengths))
    for a, b in zip(lattice.n_best(wide.detach(), lengths, 3), lattice.n_best(short, lengths, 3), strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_gives_what_its_fields_give_one_by_one() -> None:
    lattice = Lattice(load_grammar("us"), "0123456789" + "".join(c for c in load_grammar("us").alphabet if not c.isdigit()))
    scores = 3 * torch.randn(5, 30, len(lattice.alphabet) + 1, generator=torch.Generator().manual_seed(7))
    lengths = torch.tensor([30, 1, 17, 8, 25])
    together = lattice.n_best(scores, lengths, 4)
    alone = [lattice.n_best(scores[i : i + 1, : lengths[i]], lengths[i : i + 1], 4) for i in range(5)]
    for name in Reading._fields:
        joined = torch.cat([getattr(reading, name) for reading in alone])
        torch.testing.assert_close(getattr(together, name), joined, atol=1e-4, rtol=1e-5)


def test_a_blank_field_ties_everywhere_and_still_gives_each_string_once() -> None:
    grammar = compile_grammar(GRAMMARS["weighted"])
    lattice = Lattice(grammar, ALPHABET)
    texts = lattice.texts(lattice.n_best(torch.zeros(2, 5, 4), torch.tensor([5, 3]), 30))
    assert [sorted(found) for found in texts] == [
        sorted(text for text, value in by_brute_force(grammar, torch.zeros(length, 4))[0].items() if value > -math.inf)
        for length in (5, 3)
    ]


def test_all_posteriors_together_are_one() -> None:
    grammar = compile_grammar(GRAMMARS["weighted"])
    scores, _ = fields(20, seed=8)
    reading = Lattice(grammar, ALPHABET).n_best(scores, torch.full((20,), 5), 30)
    torch.testing.assert_close(reading.log_posteriors.exp().sum(1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e4, 1e20])
def test_extreme_scores_give_no_nan(size: float) -> None:
    lattice = Lattice(load_grammar("chilean"), "0123456789$.,:-/=#* ")
    scores = size * torch.randn(6, 120, 21, generator=torch.Generator().manual_seed(9))
    scores[1, :, 5:9] = -math.inf
    scores[2] = -math.inf
    scores[3] = 0
    scores.requires_grad_()
    lengths = torch.full((6,), 120)
    loss = lattice.loss(scores, lengths, ["12", "12", "1", "1234", "999", "1"])
    assert not loss.isnan().any()
    assert (loss >= 0).all()
    loss[loss.isfinite()].sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    reading = lattice.viterbi(scores.detach(), lengths)
    assert not any(values.isnan().any() for values in reading)
    assert ((reading.confidence >= 0) & (reading.confidence <= 1)).all()


def test_single_precision_gives_posteriors_to_four_decimals() -> None:
    lattice = Lattice(load_grammar("chilean"), "0123456789$.,:-/=#* ")
    scores = 4 * torch.randn(16, 100, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    lengths = torch.full((16,), 100)
    exact, single = lattice.n_best(scores, lengths, 3), lattice.n_best(scores.float(), lengths, 3)
    assert lattice.texts(exact) == lattice.texts(single)
    torch.testing.assert_close(single.log_posteriors.double(), exact.log_posteriors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(single.confidence.double(), exact.confidence, atol=1e-4, rtol=0)


def test_a_field_with_too_few_frames_has_an_infinite_loss_and_no_gradient() -> None:
    lattice = Lattice(load_grammar("digits"), "0123456789")
    scores = torch.zeros(2, 3, 11, requires_grad=True)
    loss = lattice.loss(scores, torch.tensor([3, 2]), ["11", "11"])  # equal neighbours need a blank between them
    assert loss.isfinite().tolist() == [True, False]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[1].any()


def test_what_does_not_fit_is_refused() -> None:
    lattice = Lattice(load_grammar("digits"), "0123456789")
    scores, lengths = torch.zeros(2, 3, 11), torch.tensor([3, 3])
    with pytest.raises(DataError, match="label 'x': grammar digits has no such amount"):
        lattice.loss(scores, lengths, ["1", "x"])
    with pytest.raises(UsageError, match="expected 2 labels, one for each field, found 1"):
        lattice.loss(scores, lengths, ["1"])
    with pytest.raises(UsageError, match=r"expected float scores \(B, T, 11\), found"):
        lattice.log_partition(scores[..., :10], lengths)
    with pytest.raises(UsageError, match=r"expected int64 lengths \(2,\)"):
        lattice.log_partition(scores, lengths[:1])
    with pytest.raises(UsageError, match="found n = 0"):
        lattice.n_best(scores, lengths, 0)
    with pytest.raises(UsageError, match="each character once"):
        Lattice(load_grammar("digits"), "00123456789")
    with pytest.raises(DataError, match="found '9' besides"):
        compose(load_grammar("digits").automaton, "012345678")
