"""Vectors in parameter space against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from riprap.linalg import _param_vectors as tensors
from riprap.linalg import _vector_stack as stacks

SHAPES = [(3, 4), (7,), (2, 3, 2), ()]
finite = st.floats(-100, 100, width=32)
vectors = st.tuples(*(hnp.arrays(np.float32, shape, elements=finite) for shape in SHAPES))


def as_tensors(arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]


def flat(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in arrays])


@given(vectors, vectors)
def test_dot_norm_and_cosine_agree_with_float64(left: tuple, right: tuple) -> None:
    one, two = as_tensors(left), as_tensors(right)
    a, b = flat(left), flat(right)
    slack = 1e-5 * (np.abs(a) @ np.abs(b)) + 1e-6
    assert abs(float(tensors.dot(one, two)) - a @ b) <= slack
    assert float(tensors.norm(one)) == pytest.approx(np.linalg.norm(a), rel=1e-5, abs=1e-20)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    if np.linalg.norm(a) > 1e-3 and np.linalg.norm(b) > 1e-3:
        expected = a @ b / lengths
        assert float(tensors.cosine(one, two)) == pytest.approx(expected, abs=1e-4)


@given(vectors, vectors, vectors)
def test_inner_products_are_the_single_dot_products(vector: tuple, one: tuple, two: tuple) -> None:
    mine, others = as_tensors(vector), [as_tensors(one), as_tensors(two)]
    together = tensors.inner_products(mine, others)
    assert together.tolist() == [float(tensors.dot(mine, other)) for other in others]


def test_inner_products_with_no_vectors_are_empty() -> None:
    assert tensors.inner_products([torch.ones(2)], []).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    big = [torch.full((4096,), 300.0, dtype=dtype), torch.full((10, 10), -200.0, dtype=dtype)]
    values = np.concatenate([part.double().numpy().ravel() for part in big])
    squared = float(values @ values)  # 3.7e8, beyond the largest half, 65504
    assert float(tensors.dot(big, big)) == pytest.approx(squared, rel=1e-4)
    assert float(tensors.norm(big)) == pytest.approx(squared**0.5, rel=1e-4)
    assert float(tensors.cosine(big, big)) == pytest.approx(1.0, abs=1e-4)


def test_small_half_precision_values_are_not_lost() -> None:
    small = [torch.full((10_000,), 0.01, dtype=torch.bfloat16)]
    exact = float(small[0].double() @ small[0].double())
    assert float(tensors.dot(small, small)) == pytest.approx(exact, rel=1e-4)


def test_mixed_precision_is_upcast() -> None:
    half, full = [torch.full((8,), 300.0, dtype=torch.float16)], [torch.full((8,), 300.0)]
    assert float(tensors.dot(half, full)) == 8 * 300.0**2
    assert float(tensors.dot(full, half)) == 8 * 300.0**2


def test_double_precision_is_kept() -> None:
    fine = [torch.full((3,), 1 + 1e-12, dtype=torch.float64)]
    assert float(tensors.dot(fine, fine)) - 3 == pytest.approx(6e-12, rel=1e-3)


def test_sums_of_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = [torch.randn(50)], [torch.randn(50)]
    exact = float(left[0].double() @ right[0].double())
    monkeypatch.setattr(tensors, "CPU_BLOCK_ELEMENTS", 7)
    assert float(tensors.dot(left, right)) == pytest.approx(exact, abs=1e-5)
    assert float(tensors.norm(left)) == pytest.approx(float(left[0].double().norm()), rel=1e-6)


def test_sums_over_large_tensors_are_not_short() -> None:
    """A float32 sum of 2**25 squares on a CPU is off by 0.1 % and more."""
    made = torch.Generator().manual_seed(0)
    big = torch.randn(2**25, generator=made) * 1e-3
    exact = float(torch.linalg.vector_norm(big, dtype=torch.float64))
    vector, rows = [big.view(2**13, 2**12)], big.view(1, -1)
    assert float(tensors.norm(vector)) == pytest.approx(exact, rel=1e-6)
    assert float(tensors.dot(vector, vector)) == pytest.approx(exact**2, rel=2e-6)
    stack = stacks.VectorStack({"a": vector})
    assert stack.norms["a"] == pytest.approx(exact, rel=1e-6)
    assert stack.inner_products(vector)["a"] == pytest.approx(exact**2, rel=2e-6)
    assert float(stack.gram()[0, 0]) == pytest.approx(exact**2, rel=2e-6)
    assert stacks.FlatVector(vector).norm() == pytest.approx(exact, rel=1e-6)
    assert float(tensors.row_squares(rows)[0]) == pytest.approx(exact**2, rel=1e-6)
    assert float(tensors.row_products(rows, big)[0]) == pytest.approx(exact**2, rel=2e-6)


def test_layouts_that_are_not_contiguous() -> None:
    left, right = torch.randn(4, 6), torch.randn(6, 4)
    expected = float((left.double() * right.T.double()).sum())
    assert float(tensors.dot([left], [right.T])) == pytest.approx(expected, rel=1e-5)


def test_vectors_of_different_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        tensors.dot([torch.ones(2)], [torch.ones(2), torch.ones(2)])


def test_cosine_with_nothing_is_undefined() -> None:
    assert torch.isnan(tensors.cosine([torch.zeros(3)], [torch.ones(3)]))


def test_subtract_makes_new_tensors() -> None:
    left, right = [torch.tensor([3.0, 5.0])], [torch.tensor([1.0, 1.0])]
    gone = tensors.subtract(left, right)
    gone[0].zero_()
    assert left[0].tolist() == [3.0, 5.0]
    assert tensors.subtract(left, right)[0].tolist() == [2.0, 4.0]


def test_clone_is_a_detached_copy() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    copy = tensors.clone([parameter])
    with torch.no_grad():
        parameter.mul_(2)
    assert copy[0].tolist() == [1.0, 1.0]
    assert not copy[0].requires_grad


def test_copy_into_keeps_the_target() -> None:
    target, source = [torch.zeros(2)], [torch.nn.Parameter(torch.ones(2))]
    place = target[0].data_ptr()
    tensors.copy_into(target, source)
    assert target[0].tolist() == [1.0, 1.0]
    assert target[0].data_ptr() == place
    assert not target[0].requires_grad


@given(vectors, vectors, vectors)
def test_a_stack_gives_the_same_products_as_its_vectors(
    vector: tuple, one: tuple, two: tuple
) -> None:
    stack = stacks.VectorStack({"one": as_tensors(one), "two": as_tensors(two)})
    mine, found = flat(vector), stack.inner_products(as_tensors(vector))
    for name, other in (("one", flat(one)), ("two", flat(two))):
        slack = 1e-5 * (np.abs(mine) @ np.abs(other)) + 1e-6
        assert abs(found[name] - mine @ other) <= slack
        assert stack.norms[name] == pytest.approx(np.linalg.norm(other), rel=1e-5, abs=1e-20)
        kept = stack.vector(name, as_tensors(vector))
        assert [part.shape for part in kept] == [torch.Size(shape) for shape in SHAPES]
        assert (flat(tuple(part.numpy() for part in kept)) == other).all()


def test_a_stack_of_halves_does_not_overflow() -> None:
    big = [torch.full((4096,), 300.0, dtype=torch.float16)]
    stack = stacks.VectorStack({"big": big})
    assert stack.inner_products(big)["big"] == pytest.approx(4096 * 300.0**2, rel=1e-5)
    assert stack.norms["big"] == pytest.approx(64 * 300.0, rel=1e-5)


def test_an_empty_stack_has_no_products() -> None:
    assert stacks.VectorStack({}).inner_products([torch.ones(2)]) == {}


def test_a_stack_is_a_copy() -> None:
    vector = [torch.ones(3)]
    stack = stacks.VectorStack({"one": vector})
    vector[0].zero_()
    assert stack.inner_products([torch.ones(3)]) == {"one": 3.0}


def test_chunks_join_neighbors_and_keep_large_parts_single(monkeypatch) -> None:
    monkeypatch.setattr(stacks, "CPU_CHUNK_ELEMENTS", 10)
    parts = [torch.zeros(n) for n in (4, 5, 3, 50, 2)]
    found = [[part.numel() for part in parts[chunk]] for chunk in stacks.make_chunks(parts)]
    assert found == [[4, 5], [3], [50], [2]]
    mixed = [torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)]
    assert len(stacks.make_chunks(mixed)) == 3
    assert stacks.make_chunks([]) == []


def test_a_stack_is_the_same_however_it_is_chunked(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (7,), (2, 2, 2), (11,)]
    one, two, update = (
        [torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)
    )
    whole = stacks.VectorStack({"one": one, "two": two})
    monkeypatch.setattr(stacks, "CPU_CHUNK_ELEMENTS", 8)
    small = stacks.VectorStack({"one": one, "two": two})
    assert small.inner_products(update) == pytest.approx(whole.inner_products(update), rel=1e-5)
    for stack in (whole, small):
        for kept, part in zip(stack.vector("two", two), two, strict=True):
            assert torch.equal(kept, part)


def test_a_stack_computes_its_gramian_and_adds_its_vectors() -> None:
    made = torch.Generator().manual_seed(1)
    shapes = [(3, 4), (5,), (2, 2, 2)]
    one, two, base = ([torch.randn(s, generator=made) for s in shapes] for _ in range(3))
    stack = stacks.VectorStack({"one": one, "two": two})
    flat = [torch.cat([part.flatten() for part in v]).double().numpy() for v in (one, two, base)]
    gram = np.array([[a @ b for b in flat[:2]] for a in flat[:2]])
    np.testing.assert_allclose(stack.gram().numpy(), gram, rtol=1e-5)
    found = stack.add_combination(base, {"two": -2.0, "one": 0.5})
    joined = torch.cat([part.flatten() for part in found]).numpy()
    np.testing.assert_allclose(joined, flat[2] - 2 * flat[1] + 0.5 * flat[0], rtol=1e-5)
    assert [part.shape for part in found] == [part.shape for part in base]


@pytest.mark.parametrize("storage", stacks.STORAGE_DTYPES)
def test_a_stack_that_grows_equals_one_that_is_built_at_once(storage: str) -> None:
    vectors = {name: [torch.randn(40, 30), torch.randn(700)] for name in "abc"}
    whole = stacks.VectorStack(vectors, storage)
    grown = stacks.VectorStack({}, storage, capacity=4)
    for name, vector in vectors.items():
        grown.add(name, vector)
    probe = [torch.randn(40, 30), torch.randn(700)]
    assert grown.inner_products(probe) == whole.inner_products(probe)
    assert torch.equal(grown.gram(), whole.gram())
    assert (grown.names, grown.norms, grown.nbytes) == (whole.names, whole.norms, whole.nbytes)
    for part in (p for parts in grown.state_dict()["rows"] for p in parts):
        assert part.untyped_storage().nbytes() == part.nbytes  # nothing reserved is saved
    grown.add("d", probe)
    assert grown.names == ["a", "b", "c", "d"]
    for name in "ad":
        with pytest.raises(ValueError, match="no place"):
            grown.add(name, probe)
