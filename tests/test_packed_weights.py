"""Packed weights are kept while the parameter is unchanged, and never used after it has changed."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import convext
from tests import numerics

ALGORITHMS = ["im2col", "winograd"]
X = numerics.integers(seed=1)(1, 8, 6, 6)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    convext.clear_packed_weights()
    yield
    convext.clear_packed_weights()


@pytest.fixture(params=ALGORITHMS)
def layer(request: pytest.FixtureRequest) -> convext.Conv2d:
    layer = convext.Conv2d(8, 16, 3, padding=1, bias=False, algorithm=request.param)
    with torch.no_grad():
        layer.weight.copy_(numerics.integers()(16, 8, 3, 3))
    return layer


def check(layer: nn.Conv2d, times: int = 3) -> None:
    """The layer's output is that of the weight it has now, however often it is asked."""
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(X.to(layer.weight.dtype), layer.weight, padding=1)
        for _ in range(times):
            torch.testing.assert_close(layer(X.to(layer.weight.dtype)), expected, atol=1e-2, rtol=0)


def test_kept_from_the_second_call_on(layer: convext.Conv2d) -> None:
    with torch.no_grad():
        layer(X)
        assert convext.packed_weight_bytes() == 0
        layer(X)
        kept = convext.packed_weight_bytes()
        assert kept >= layer.weight.nbytes
        layer(X)
        assert convext.packed_weight_bytes() == kept
    check(layer)


def test_not_kept_while_gradients_are_recorded(layer: convext.Conv2d) -> None:
    for _ in range(4):
        layer(X.clone().requires_grad_()).sum().backward()
    assert convext.packed_weight_bytes() == 0
    layer.requires_grad_(False)
    for _ in range(2):
        layer(X)
    assert convext.packed_weight_bytes() > 0


def _optimiser_step(layer: nn.Conv2d) -> None:
    layer(X).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.01).step()


def _load(layer: nn.Conv2d) -> None:
    layer.load_state_dict({"weight": numerics.integers(seed=7)(16, 8, 3, 3)})


def _in_place(layer: nn.Conv2d) -> None:
    with torch.no_grad():
        layer.weight[3, 2, 1, 0] += 5


def _by_data(layer: nn.Conv2d) -> None:
    layer.weight.data.mul_(2)


def _replaced(layer: nn.Conv2d) -> None:
    layer.weight = nn.Parameter(numerics.integers(seed=8)(16, 8, 3, 3))


def _data_replaced(layer: nn.Conv2d) -> None:
    layer.weight.data = numerics.integers(seed=9)(16, 8, 3, 3)


def _numpy(layer: nn.Conv2d) -> None:
    layer.weight.detach().numpy()[:] *= 3


def _double(layer: nn.Conv2d) -> None:
    layer.double()


def _channels_last(layer: nn.Conv2d) -> None:
    layer.to(memory_format=torch.channels_last)


CHANGES = [_optimiser_step, _load, _in_place, _by_data, _replaced, _data_replaced, _numpy, _double, _channels_last]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_packed_anew(layer: convext.Conv2d, change: Callable[[nn.Conv2d], None]) -> None:
    check(layer)
    assert convext.packed_weight_bytes() > 0
    for _ in range(2):
        change(layer)
        check(layer)


def test_copies_are_weights_of_their_own(layer: convext.Conv2d) -> None:
    check(layer)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        _in_place(other)
        check(other)
        check(layer)


def test_views_of_one_storage_do_not_meet(layer: convext.Conv2d) -> None:
    both = numerics.integers()(32, 8, 3, 3)
    with torch.no_grad():
        for part in (both[:16], both[16:], both[:16].flip(0), both[::2]):
            expected = torch.nn.functional.conv2d(X, part, padding=1)
            for _ in range(3):
                actual = convext.functional.conv2d(X, part, padding=1, algorithm=layer.algorithm)
                torch.testing.assert_close(actual, expected, atol=1e-2, rtol=0)


def test_one_weight_in_several_calls(layer: convext.Conv2d) -> None:
    """The packing depends on groups, layout, flipping and the instruction set: each call has its own."""
    weight = numerics.integers()(16, 4, 3, 3)
    for _ in range(3):
        for isa in convext._C.available_isas():
            for x in (X, X.contiguous(memory_format=torch.channels_last)):
                for flip in (False, True):
                    w = weight.flip(2, 3) if flip else weight
                    expected = torch.nn.functional.conv2d(x, w, padding=1, groups=2)
                    with numerics.instruction_set(isa):
                        actual = convext.functional.conv2d(
                            x, weight, padding=1, groups=2, flip_kernel=flip, algorithm=layer.algorithm
                        )
                    torch.testing.assert_close(actual, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize("flip", [False, True], ids=["as it is", "flipped"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "images", "kernel", "stride"),
    [
        (304, 240, 7, 3, 3, 1),
        (176, 272, 14, 2, 3, 1),
        (400, 176, 5, 4, 3, 1),
        (176, 144, 9, 2, 3, 2),  # the kernel's phases have different sums
        (408, 120, 8, 1, 3, 2),
        (136, 200, 10, 3, 4, 2),
        (416, 176, 7, 1, 3, 1),  # from here on so few tiles that the transformed weight stays in registers
        (432, 184, 6, 2, 3, 1),
        (520, 184, 3, 3, 3, 1),
        (184, 312, 4, 1, 3, 1),
    ],
)
def test_packing_on_the_way_changes_no_bit(
    inputs: int, outputs: int, size: int, images: int, kernel: int, stride: int, dtype: torch.dtype, last: bool,
    flip: bool,
) -> None:  # fmt: skip
    """Of a weight so large that winograd transforms it a part at a time where it is used once; sums of more terms than
    are added at once, last panels that are not full."""
    format = torch.channels_last if last else torch.contiguous_format
    make = numerics.normals(dtype)
    size_out = (size + 2 - kernel) // stride + 1
    x, dy = make(images, inputs, size, size), make(images, outputs, size_out, size_out)
    weight = make(outputs, inputs, kernel, kernel).contiguous(memory_format=format)
    x, dy = (t.contiguous(memory_format=format) for t in (x, dy))
    options = ([stride] * 2, [1] * 4, [1, 1], 1, "zeros", flip, "winograd")
    for run in (
        lambda: torch.ops.convext.conv_forward(x, weight, None, *options),
        lambda: torch.ops.convext.conv_backward_input(dy, weight, x.shape, *options),
    ):
        with numerics.poisoned(), convext.profile() as profile:
            first = run()
        assert sum(phase.calls for phase in profile.phases if phase.name == "pack weight") > 1, "packed beforehand"
        assert convext.packed_weight_bytes() == 0
        run()
        assert convext.packed_weight_bytes() > 0
        numerics.assert_same_bits(run(), first)
        for threads in (1, 3):
            convext.clear_packed_weights()
            with numerics.threads(threads):
                numerics.assert_same_bits(run(), first)
        convext.clear_packed_weights()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "images"),
    [(500, 640, 7, 2), (96, 256, 14, 3), (1000, 160, 5, 1), (33, 192, 3, 4)],
)
def test_packing_a_pointwise_weight_on_the_way_changes_no_bit(
    inputs: int, outputs: int, size: int, images: int, stride: int, dtype: torch.dtype
) -> None:
    """im2col, channels_last, few places: each thread packs the panels of its own outputs, a block of the sum at a
    time."""
    make = numerics.normals(dtype)
    size_out = (size - 1) // stride + 1
    x, dy = make(images, inputs, size, size), make(images, outputs, size_out, size_out)
    weight, bias = make(outputs, inputs, 1, 1), make(outputs)
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    options = ([stride] * 2, [0] * 4, [1, 1], 1, "zeros", False, "im2col")
    first = torch.Tensor()
    for run in (
        lambda: torch.ops.convext.conv_forward(x, weight, bias, *options),
        lambda: torch.ops.convext.conv_backward_input(dy, weight, x.shape, *options),
    ):
        convext.clear_packed_weights()
        packings = []
        for _ in range(2):
            with numerics.poisoned(), numerics.threads(1), convext.profile() as profile:
                result = run()
            packings.append(sum(phase.calls for phase in profile.phases if phase.name == "pack weight"))
            first = result if len(packings) == 1 else first
            numerics.assert_same_bits(result, first)
        assert convext.packed_weight_bytes() > 0
        assert 0 < packings[0] < packings[1], "packed beforehand, panel by panel"
        for threads in (2, 3, 4):
            convext.clear_packed_weights()
            with numerics.poisoned(), numerics.threads(threads):
                numerics.assert_same_bits(run(), first)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "images", "stride"), [(40, 72, 30, 3, 1), (128, 128, 9, 1, 1), (40, 48, 30, 2, 2)]
)
def test_a_few_threads_pack_a_small_weight_each_for_itself(
    inputs: int, outputs: int, size: int, images: int, stride: int, last: bool
) -> None:
    """Where it is used once: all of it, or those outputs that it computes. More threads share one."""
    format = torch.channels_last if last else torch.contiguous_format
    make, size_out = numerics.normals(torch.float32), (size - 1) // stride + 1
    x = make(images, inputs, size, size).contiguous(memory_format=format)
    dy = make(images, outputs, size_out, size_out).contiguous(memory_format=format)
    weight = make(outputs, inputs, 3, 3)
    options = ([stride] * 2, [1] * 4, [1, 1], 1, "zeros", False, "winograd")
    for run in (
        lambda: torch.ops.convext.conv_forward(x, weight, None, *options),
        lambda: torch.ops.convext.conv_backward_input(dy, weight, x.shape, *options),
    ):
        results = []
        for threads in (1, 2, 4, 5):
            convext.clear_packed_weights()
            with numerics.threads(threads), numerics.poisoned(), convext.profile() as profile:
                results.append(run())
            packs = [phase for phase in profile.phases if phase.name == "pack weight"]
            assert (sum(phase.calls for phase in packs) > 1) == (1 < threads <= 4), threads
        for result in results[1:]:
            numerics.assert_same_bits(result, results[0])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "algorithm", "mode", "inputs", "outputs", "size", "images", "dilation"),
    [
        (torch.float32, "winograd", "circular", 500, 300, 6, 2, 1),  # few tiles, but not those of the call
        (torch.bfloat16, "winograd", "reflect", 500, 300, 7, 1, 1),
        (torch.float16, "winograd", "circular", 64, 64, 40, 3, 1),
        (torch.bfloat16, "im2col", "circular", 64, 64, 8, 2, 1),  # in float32: not as bfloat16 would go
        (torch.float32, "winograd", "zeros", 256, 448, 8, 17, 2),  # the last image has fewer tiles than all
        (torch.float32, "winograd", "zeros", 32, 48, 100, 2, 2),  # an image at a time
    ],
)
def test_parts_of_a_call_take_the_weight_as_it_was_packed(
    dtype: torch.dtype, algorithm: str, mode: str, inputs: int, outputs: int, size: int, images: int, dilation: int,
    threads: int, last: bool,
) -> None:  # fmt: skip
    """The gradient of padding that repeats is computed in a wider type, for a larger map, some images at a time; a
    dilation some images at a time, too. Once with the weight raw, then packed."""
    format = torch.channels_last if last else torch.contiguous_format
    make = numerics.integers(dtype)
    x = make(images, inputs, size, size).clamp(-2, 2).contiguous(memory_format=format).requires_grad_()
    weight = torch.nn.Parameter(make(outputs, inputs, 3, 3).clamp(-1, 1))
    padded = torch.nn.functional.pad(x.double(), (dilation,) * 4, mode="constant" if mode == "zeros" else mode)
    expected = torch.nn.functional.conv2d(padded, weight.double(), dilation=dilation)
    dy = make(*expected.shape).clamp(-1, 1).contiguous(memory_format=format)
    (gradient,) = torch.autograd.grad(expected, x, dy.double())
    options = {"padding": dilation, "dilation": dilation, "padding_mode": mode, "algorithm": algorithm}
    with numerics.threads(threads), numerics.poisoned():
        for _ in range(3):
            y = convext.functional.conv2d(x, weight, **options)
            (actual,) = torch.autograd.grad(y, x, dy)
            for result, exact in ((y, expected), (actual, gradient)):
                limit = 1e-5 if dtype is torch.float32 else 1e-2
                assert float((result.detach().double() - exact.detach()).norm() / exact.detach().norm()) < limit


def test_nothing_outlives_the_weight(layer: convext.Conv2d) -> None:
    check(layer)
    assert convext.packed_weight_bytes() > 0
    del layer.weight
    gc.collect()
    assert convext.packed_weight_bytes() == 0


def test_a_changed_weight_keeps_one_copy(layer: convext.Conv2d) -> None:
    check(layer)
    kept = convext.packed_weight_bytes()
    for _ in range(5):
        _in_place(layer)
        check(layer)
    assert convext.packed_weight_bytes() == kept


def test_weights_made_in_inference_mode_are_not_kept() -> None:
    with torch.inference_mode():
        weight = numerics.integers()(16, 8, 3, 3)
        for step in range(3):
            weight[0, 0, 0, 0] = step
            expected = torch.nn.functional.conv2d(X, weight)
            torch.testing.assert_close(
                convext.functional.conv2d(X, weight, algorithm="im2col"), expected, atol=1e-3, rtol=0
            )
    assert convext.packed_weight_bytes() == 0


def test_temporary_weights_leave_nothing() -> None:
    def once() -> Tensor:
        return convext.functional.conv2d(X, numerics.integers()(16, 8, 3, 3), algorithm="im2col")

    for _ in range(200):
        once()
    assert convext.packed_weight_bytes() == 0
