"""The nodes of autograd's graph (csrc/node.h): all that torch's own let a user do with a graph, for every operator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

import convext.functional as C
from tests import numerics

Operator = Callable[..., Tensor]

# name of an operator: its call as a function of the tensors that have gradients, their shapes, whether anything that it
# saves is the caller's, who may change it
SAMPLES = torch.rand(1, 2, 2, generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([0, 3, 13, 18]).repeat(2).reshape(1, 2, 2, 2)
OPERATORS: dict[str, tuple[Operator, tuple[tuple[int, ...], ...], bool]] = {
    "conv2d": (lambda x, w, b: C.conv2d(x, w, b, padding=1), ((1, 2, 5, 5), (3, 2, 3, 3), (3,)), True),
    "conv2d reflected": (
        lambda x, w: C.conv2d(x, w, padding=1, padding_mode="reflect", algorithm="naive"),
        ((1, 2, 5, 5), (3, 2, 3, 3)),
        True,
    ),
    "conv_transpose2d": (
        lambda x, w: C.conv_transpose2d(x, w, stride=2, algorithm="im2col"),
        ((1, 2, 3, 3), (2, 2, 3, 3)),
        True,
    ),
    "max_pool2d": (lambda x: C.max_pool2d(x, 2), ((1, 2, 6, 6),), False),
    "max_pool2d with indices": (lambda x: C.max_pool2d(x, 2, return_indices=True)[0], ((1, 2, 6, 6),), False),
    "max_pool2d unbatched": (lambda x: C.max_pool2d(x, 3, 2, 1), ((2, 6, 6),), False),
    "avg_pool2d": (lambda x: C.avg_pool2d(x, 3, 2, 1, count_include_pad=False), ((1, 2, 6, 6),), False),
    "avg_pool2d by 5": (lambda x: C.avg_pool2d(x, 2, divisor_override=5), ((1, 2, 6, 6),), False),
    "adaptive_avg_pool2d": (lambda x: C.adaptive_avg_pool2d(x, (4, 3)), ((1, 2, 6, 6),), False),
    "adaptive_max_pool2d": (lambda x: C.adaptive_max_pool2d(x, (4, 3)), ((1, 2, 6, 6),), False),
    "adaptive_max_pool2d with indices": (
        lambda x: C.adaptive_max_pool2d(x, (4, 3), return_indices=True)[0],
        ((1, 2, 6, 6),),
        False,
    ),
    "lp_pool2d": (lambda x: C.lp_pool2d(x, 3.0, 2), ((1, 2, 6, 6),), True),
    "max_unpool2d": (lambda x: C.max_unpool2d(x, INDICES, 2, output_size=(5, 5)), ((1, 2, 2, 2),), True),
    "k_max_pool1d": (lambda x: C.k_max_pool1d(x, 3, dim=1), ((2, 7, 4),), False),
    "k_max_pool": (lambda x: C.k_max_pool(x, 5), ((1, 2, 4, 4),), False),
    "fractional_max_pool2d": (
        lambda x: C.fractional_max_pool2d(x, 2, 3, _random_samples=SAMPLES),
        ((1, 2, 7, 6),),
        False,
    ),
}
each_operator = pytest.mark.parametrize("name", OPERATORS)


def prepared(name: str) -> tuple[Operator, list[Tensor], Tensor]:
    """The call, its tensors (positive: the root of a sum is smooth), and a gradient that comes in."""
    function, shapes, _ = OPERATORS[name]
    make = numerics.normals()
    operands = [(make(*shape).abs() + 0.25).requires_grad_() for shape in shapes]
    output = function(*operands)
    return function, operands, numerics.normals(seed=3)(*output.shape)


def gradients(function: Operator, operands: list[Tensor], grad_output: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(function(*operands), operands, grad_output, **options))


def assert_all_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        numerics.assert_same_bits(a, e)


# What a graph holds on to --------------------------------------------------------------------------------------------


@each_operator
def test_a_graph_dies_with_its_output(name: str) -> None:
    """Also where the output itself is saved: no cycle."""
    function, operands, grad_output = prepared(name)
    for run in (False, True):
        output = function(*operands)
        if run:
            torch.autograd.grad(output, operands, grad_output, retain_graph=True)
        storage = StorageWeakRef(output.untyped_storage())
        assert not storage.expired()
        del output
        assert storage.expired()


@each_operator
def test_what_is_saved_goes_after_the_first_run(name: str) -> None:
    function, operands, grad_output = prepared(name)
    saved: list[StorageWeakRef] = []

    class Box:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.clone()
            saved.append(StorageWeakRef(self.tensor.untyped_storage()))

    with saved_tensors_hooks(Box, lambda box: box.tensor):
        output = function(*operands)
    first = torch.autograd.grad(output, operands, grad_output, retain_graph=True)
    assert not any(reference.expired() for reference in saved)
    assert_all_same(list(torch.autograd.grad(output, operands, grad_output)), list(first))
    assert all(reference.expired() for reference in saved)
    if saved:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(output, operands, grad_output)


@each_operator
def test_saved_tensors_may_be_kept_elsewhere(name: str) -> None:
    function, operands, grad_output = prepared(name)
    expected = gradients(function, operands, grad_output)
    with save_on_cpu():
        assert_all_same(gradients(function, operands, grad_output), expected)
    packed = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.clone())
        return len(packed) - 1

    with saved_tensors_hooks(pack, packed.__getitem__):
        assert_all_same(gradients(function, operands, grad_output), expected)


@pytest.mark.parametrize("name", [name for name, (_, _, saves) in OPERATORS.items() if saves])
def test_a_change_of_what_is_saved_is_noticed(name: str) -> None:
    function, operands, grad_output = prepared(name)
    changeable = [*operands, INDICES] if "unpool" in name else operands
    noticed = 0
    for tensor in changeable:
        output = function(*operands)
        with torch.no_grad():
            tensor.add_(0)
        try:
            torch.autograd.grad(output, operands, grad_output)
        except RuntimeError as error:
            noticed += "modified by an inplace operation" in str(error)
    assert noticed == (2 if "conv" in name else 1)
    if "lp" in name:
        output = function(*operands)
        output.data = output.data  # no change
        output.detach().add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(output, operands, grad_output)


def test_an_inference_tensor_is_not_saved() -> None:
    with torch.inference_mode():
        x = torch.ones(1, 2, 5, 5)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        C.conv2d(x, torch.ones(3, 2, 3, 3, requires_grad=True))


# Runs of a graph -----------------------------------------------------------------------------------------------------


@each_operator
def test_gradients_that_differentiate_further_are_the_same(name: str) -> None:
    function, operands, grad_output = prepared(name)
    expected = gradients(function, operands, grad_output)
    actual = gradients(function, operands, grad_output.requires_grad_(), create_graph=True)
    assert all(a.requires_grad for a in actual)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach(), e)


@each_operator
def test_only_what_is_wanted_is_computed(name: str) -> None:
    function, operands, grad_output = prepared(name)
    expected = gradients(function, operands, grad_output)
    output = function(*operands)
    for operand, gradient in zip(operands, expected, strict=True):
        with torch.profiler.profile() as profile:
            (alone,) = torch.autograd.grad(output, operand, grad_output, retain_graph=True)
        numerics.assert_same_bits(alone, gradient)
        ran = [event.name for event in profile.events() if event.name.startswith("convext::")]
        assert len(ran) <= 1, ran
    for i in range(len(operands)):  # and where the others never needed one
        leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate(operands)]
        numerics.assert_same_bits(torch.autograd.grad(function(*leaves), leaves[i], grad_output)[0], expected[i])


@each_operator
def test_no_gradient_comes_of_none(name: str) -> None:
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    function, operands, _ = prepared(name)
    Nothing.apply(function(*operands)).sum().backward()
    assert all(t.grad is None or not t.grad.any() for t in operands)


@each_operator
def test_hooks_on_a_node(name: str) -> None:
    function, operands, grad_output = prepared(name)
    expected = gradients(function, operands, grad_output)
    output = function(*operands)
    seen: list[tuple[Any, ...]] = []
    output.grad_fn.register_prehook(lambda grads: tuple(None if grad is None else grad * 2 for grad in grads))
    output.grad_fn.register_hook(lambda inputs, outputs: seen.append((inputs, outputs)))
    for a, e in zip(torch.autograd.grad(output, operands, grad_output), expected, strict=True):
        torch.testing.assert_close(a, e * 2)
    assert len(seen) == 1


@each_operator
def test_anomaly_mode_names_the_node(name: str) -> None:
    function, operands, grad_output = prepared(name)
    expected = gradients(function, operands, grad_output)
    with torch.autograd.set_detect_anomaly(True):
        assert_all_same(gradients(function, operands, grad_output), expected)
        bad = torch.full_like(grad_output, torch.nan)
        with (
            pytest.warns(UserWarning, match=r"Error detected in \w+Backward"),
            pytest.raises(RuntimeError, match="nan"),
        ):
            gradients(function, operands, bad)


@each_operator
def test_several_threads_run_one_graph(name: str) -> None:
    function, operands, grad_output = prepared(name)
    expected = gradients(function, operands, grad_output)
    output = function(*operands)
    found: list[list[Tensor]] = []

    def run() -> None:
        found.extend(list(torch.autograd.grad(output, operands, grad_output, retain_graph=True)) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for actual in found:
        assert_all_same(actual, expected)


# Compiled autograd ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@each_operator
@pytest.mark.usefixtures("fresh")
def test_compiled_autograd_traces_a_node(name: str) -> None:
    """Every gradient, then one of them alone, by one graph each, run twice."""
    function, operands, grad_output = prepared(name)
    graphs = 0

    def count(module: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return torch.compile(module, backend="eager")

    for wanted in ([True] * len(operands), [True] + [False] * (len(operands) - 1)):
        expected = gradients(function, operands, grad_output)
        before = graphs
        for _ in range(2):
            leaves = [t.detach().clone().requires_grad_(w) for t, w in zip(operands, wanted, strict=True)]
            output = function(*leaves)
            with torch._dynamo.compiled_autograd._enable(count):
                output.backward(grad_output)
            for leaf, wants, gradient in zip(leaves, wanted, expected, strict=True):
                assert (leaf.grad is not None) == wants
                if wants:
                    numerics.assert_same_bits(leaf.grad, gradient)
        assert graphs == before + (1 if wanted != [True] or before == 0 else 0)
