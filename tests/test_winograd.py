"""Winograd beyond what every algorithm is held to: the matrices, the accuracy of the modes, tiles that do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convext
from benchmarks.shapes import ConvProblem
from convext import ops
from tests import calls, numerics, winograd

TILES = [(2, 3), (4, 3), (2, 5), (4, 5), (4, 2), (2, 4), (4, 4)]

ACCURATE = 2.5e-6
FAST = 1e-5


@pytest.mark.parametrize(("m", "r"), TILES)
def test_the_matrices_make_a_convolution(m: int, r: int) -> None:
    """A^T [(G g) * (B^T d)] is the sum of products, for every unit vector g and d: in fractions, exactly.

    Every product of an output, a tap and a place is there, so that the transposes, the gradients, are right as well.
    """
    a_t, g, b_t = winograd.matrices(m, r)
    n = m + r - 1
    for tap in range(r):
        for place in range(n):
            product = [g[e][tap] * b_t[e][place] for e in range(n)]
            outputs = [sum(a * p for a, p in zip(row, product, strict=True)) for row in a_t]
            assert outputs == [int(i + tap == place) for i in range(m)]


def problem_of(kernel: tuple[int, ...], size: tuple[int, ...], inputs: int = 5, outputs: int = 7) -> ConvProblem:
    padding = tuple((k // 2, k // 2) for k in kernel)
    return ConvProblem("winograd", (inputs, outputs), size, kernel, batch=2, padding=padding, bias=True)


SIZES = sorted({1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 31, 32, 33, 63, 65, 67})


@pytest.mark.parametrize("mode", ["accurate", "fast"])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (5, 5)])
@pytest.mark.parametrize("width", SIZES)
def test_every_remainder_of_a_tile(kernel: tuple[int, int], width: int, mode: str, isa: str) -> None:
    for height in (1, 4, 6):
        problem = problem_of(kernel, (height, width))
        check_against_naive(problem, torch.float32, mode)
        check_against_naive(problem.with_(size=(width, height)), torch.float64, mode)


@pytest.mark.parametrize("channels", [1, 2, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 33])
def test_every_remainder_of_channels(channels: int, isa: str) -> None:
    check_against_naive(problem_of((3, 3), (9, 10), channels, 34 - channels), torch.float32)


@pytest.mark.parametrize("kernel", [3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("width", SIZES)
def test_every_remainder_of_a_strided_tile(kernel: int, width: int, isa: str) -> None:
    for height in (1, 7, 8, 9):
        problem = problem_of((kernel, kernel), (height, width)).with_(stride=2)
        check_against_naive(problem, torch.float32)
        check_against_naive(problem.with_(size=(width, height), padding=((0, kernel), (kernel - 1, 1))), torch.float64)


@pytest.mark.parametrize("channels", [1, 5, 8, 9, 16, 17, 97])
def test_phases_of_every_remainder_of_channels(channels: int, isa: str) -> None:
    for kernel in (3, 4):
        problem = problem_of((kernel, kernel), (19, 22), channels, 120 - channels).with_(stride=2)
        check_against_naive(problem, torch.float32)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular", "symmetric"])
@pytest.mark.parametrize("kernel", [3, 4])
def test_phases_of_paddings(padding_mode: str, kernel: int, isa: str) -> None:
    problem = problem_of((kernel, kernel), (8, 21), 6, 9).with_(
        stride=2, groups=3, padding_mode=padding_mode, flip_kernel=True
    )
    check_against_naive(problem.with_(padding=((2, 0), (1, 3))), torch.float32)
    deep = problem.with_(size=(3, 8, 21), kernel=(1, kernel, kernel), padding=((1, 0), (2, 1), (3, 2)))
    for stride in (1, 2):
        check_against_naive(deep.with_(stride=(stride, 2, 2)), torch.float64)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("spatial", [1, 3])
def test_other_dimensions(taps: int, spatial: int, isa: str) -> None:
    if spatial == 1:
        check_against_naive(problem_of((taps,), (37,)), torch.float32)
        check_against_naive(problem_of((1, taps), (3, 21)), torch.float64)
        return
    check_against_naive(problem_of((2, taps, taps), (5, 6, 7)), torch.float32)
    check_against_naive(problem_of((3, taps, taps), (9, 10, 4)).with_(stride=(2, 1, 1)), torch.float64)
    check_against_naive(problem_of((taps, 1, taps), (4, 3, 9)), torch.float32)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular", "symmetric"])
@pytest.mark.parametrize("groups", [1, 3])
def test_paddings_and_groups(padding_mode: str, groups: int, isa: str) -> None:
    problem = problem_of((3, 3), (7, 13), 6, 9).with_(groups=groups, padding_mode=padding_mode, flip_kernel=groups == 3)
    check_against_naive(problem.with_(padding=((2, 0), (1, 3))), torch.float32)
    check_against_naive(problem.with_(padding=((4, 5), (3, 4))), torch.float64)


def check_against_naive(problem: ConvProblem, dtype: torch.dtype, mode: str = "accurate") -> None:
    for channels_last in calls.layouts(problem.spatial):
        operands = calls.conv_operands(problem, numerics.integers(dtype), channels_last)
        for direction in calls.directions(problem, operands, "winograd"):
            expected = calls.run_conv(problem, direction, operands, "naive")
            actual = calls.run_conv(problem, direction, operands, f"winograd:{mode}")
            winograd.assert_nearest(actual, expected, f"{direction}, {problem.size}")


@st.composite
def problems(draw: st.DrawFn) -> ConvProblem:
    """Whatever winograd takes, at random."""
    spatial, taps = draw(st.integers(1, 3)), draw(st.sampled_from([3, 5]))
    taps = draw(st.sampled_from([2, taps])) if spatial > 1 else taps
    stride = draw(st.sampled_from([1, 2])) if spatial == 2 and taps > 2 else 1
    taps += draw(st.integers(0, 3)) if stride == 2 else 0
    kernel = ((draw(st.integers(1, 3)),) if spatial == 3 else ()) + (taps,) * min(spatial, 2)
    groups = draw(st.integers(1, 3))
    padding, size = [], []
    for k in kernel:
        before, after = draw(st.integers(0, k + 1)), draw(st.integers(0, k + 1))
        padding.append((before, after))
        size.append(max(1, k - before - after) + draw(st.integers(0, 12)))
    return ConvProblem(
        "random",
        (groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))),
        tuple(size),
        kernel,
        batch=draw(st.integers(1, 3)),
        padding=tuple(padding),
        groups=groups,
        stride=stride,
        flip_kernel=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@pytest.mark.parametrize("isa_name", numerics.ISAS)
@given(problem=problems(), of=st.sampled_from(numerics.FLOATS), mode=st.sampled_from(["accurate", "fast"]))
def test_random_geometry(isa_name: str, problem: ConvProblem, of: torch.dtype, mode: str) -> None:
    with numerics.instruction_set(isa_name):
        check_against_naive(problem, of, mode)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_maps_in_many_blocks(threads: int, isa: str) -> None:
    """Blocks of tiles that end inside a row, blocks that threads share, and more than one block of the sum."""
    for size, inputs, outputs in (((45, 50), 33, 20), ((9, 8), 400, 70), ((5, 4), 130, 200)):
        problem = ConvProblem("blocks", (inputs, outputs), size, (3, 3), padding=1)
        strided = problem.with_(size=tuple(2 * s for s in size), kernel=(4, 4), stride=2)
        for channels_last in (False, True):
            for p, direction in ((problem, "forward"), (strided, "forward"), (strided, "backward_input")):
                operands = calls.conv_operands(p, numerics.integers(torch.float64), channels_last)
                with numerics.threads(threads):
                    actual = calls.run_conv(p, direction, operands, "winograd")
                winograd.assert_nearest(actual, calls.run_conv(p, direction, operands, "im2col"), f"{p.size}")


# Few tiles, whose sums stay in registers, and more; parts that threads take alone; several blocks of sums; several
# chunks of tiles: parts of a slice, images, slices; more chunks than one sum takes.
WEIGHT_CHUNKS = {
    "few tiles, parts of channels": ConvProblem("weight", (17, 33), (13, 11), (3, 3), batch=2, padding=1),
    "few tiles, parts of input channels": ConvProblem("weight", (65, 7), (9, 10), (5, 5), padding=2),
    "few tiles, parts of groups": ConvProblem("weight", (51, 105), (7, 9), (3, 3), batch=2, padding=1, groups=3),
    "few tiles, blocks of sums": ConvProblem(
        "weight", (520, 144), (3, 5), (3, 3), batch=3, padding=1, flip_kernel=True
    ),
    "as many as are few": ConvProblem("weight", (16, 18), (8, 32), (3, 3), batch=2, padding=1),
    "one more than few": ConvProblem("weight", (16, 18), (4, 132), (3, 3), padding=1),
    "parts of channels": ConvProblem("weight", (17, 33), (13, 11), (3, 3), batch=5, padding=1),
    "parts of input channels": ConvProblem("weight", (65, 7), (9, 10), (5, 5), batch=7, padding=2),
    "parts of groups": ConvProblem("weight", (51, 105), (7, 9), (3, 3), batch=7, padding=1, groups=3),
    "parts with depths": ConvProblem("weight", (20, 36), (5, 9, 11), (3, 3, 3), batch=2, padding=1),
    "blocks of sums": ConvProblem("weight", (70, 130), (9, 11), (3, 3), batch=5, padding=1),
    "parts of a slice": ConvProblem("weight", (200, 264), (60, 50), (3, 3), padding=1),
    "images": ConvProblem("weight", (64, 64), (33, 31), (3, 3), batch=9, padding=1),
    "depths": ConvProblem("weight", (24, 40), (17, 34, 34), (3, 3, 3), padding=1),
    "depths apart": ConvProblem("weight", (24, 40), (33, 34, 34), (2, 3, 3), padding=1, stride=(2, 1, 1)),
    "many": ConvProblem("weight", (5, 6), (524, 522), (3, 3), padding=1),
    "strided, few tiles": ConvProblem("weight", (33, 35), (26, 22), (4, 4), batch=2, padding=1, stride=2),
    "strided, few tiles, parts of groups": ConvProblem(
        "weight", (51, 105), (14, 18), (3, 3), batch=2, padding=1, stride=2, groups=3, flip_kernel=True
    ),
    "strided, few tiles, blocks of sums": ConvProblem("weight", (300, 250), (15, 11), (5, 5), padding=2, stride=2),
    "strided, few tiles of a large kernel": ConvProblem("weight", (19, 21), (20, 23), (8, 8), padding=3, stride=2),
    "strided, as many as are few": ConvProblem("weight", (16, 18), (16, 64), (4, 4), batch=2, padding=1, stride=2),
    "strided, one more than few": ConvProblem("weight", (16, 18), (8, 264), (4, 4), padding=1, stride=2),
    "strided, parts of channels": ConvProblem("weight", (17, 33), (26, 22), (3, 3), batch=5, padding=1, stride=2),
    "strided, parts of input channels": ConvProblem("weight", (65, 7), (18, 20), (6, 6), batch=7, padding=2, stride=2),
    "strided, blocks of sums": ConvProblem(
        "weight", (70, 130), (19, 23), (4, 4), batch=5, padding=1, stride=2, flip_kernel=True
    ),
    "strided, blocks of sums, depths": ConvProblem(
        "weight", (40, 50), (4, 19, 23), (1, 3, 3), batch=3, padding=1, stride=(1, 2, 2)
    ),
    "strided, parts of a slice": ConvProblem("weight", (100, 134), (120, 100), (4, 4), padding=1, stride=2),
    "strided, images": ConvProblem("weight", (64, 64), (65, 63), (3, 3), batch=7, padding=1, stride=2),
    "strided, depths": ConvProblem("weight", (24, 40), (17, 66, 66), (1, 5, 5), padding=(2, 2, 2), stride=(1, 2, 2)),
    "strided, many": ConvProblem("weight", (3, 2), (1044, 1048), (3, 3), padding=1, stride=2),
    "strided, many of a large kernel": ConvProblem("weight", (3, 2), (524, 522), (7, 7), padding=3, stride=2),
    "2x2": ConvProblem("weight", (33, 35), (57, 58), (2, 2), batch=2),
}


@pytest.mark.parametrize("name", WEIGHT_CHUNKS)
def test_gradient_of_the_weight_in_many_chunks(name: str) -> None:
    """Right, and the same bits from one thread and from several."""
    problem = WEIGHT_CHUNKS[name]
    for channels_last in (False, True):
        operands = calls.conv_operands(problem, numerics.integers(torch.float64), channels_last)
        expected = calls.run_conv(problem, "backward_weight", operands, "im2col")
        results = []
        for count in (1, 2, 3, 8):
            with numerics.threads(count):
                results.append(calls.run_conv(problem, "backward_weight", operands, "winograd"))
        winograd.assert_nearest(results[0], expected, name)
        for result in results[1:]:
            numerics.assert_same_bits(result, results[0], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 1), (3, 2), (4, 2), (5, 2), (8, 2)])
def test_sums_of_few_tiles_have_the_bits_of_many(kernel: int, stride: int, dtype: torch.dtype, isa: str) -> None:
    """Where images that add nothing but zeros come after the first."""
    size = (14 * stride - 1, 12 * stride - 1)
    few = ConvProblem("few", (35, 19), size, (kernel, kernel), padding=(kernel - 1) // 2, stride=stride, dtype=dtype)
    many = few.with_(batch=4)
    operands = calls.conv_operands(many, numerics.normals(dtype))
    operands.input[1:] = 0
    operands.grad_output[1:] = 0
    first = calls.ConvOperands(operands.input[:1], operands.weight, operands.bias, operands.grad_output[:1])
    actual = calls.run_conv(few, "backward_weight", first, "winograd")
    numerics.assert_same_bits(actual, calls.run_conv(many, "backward_weight", operands, "winograd"), "few")


def normwise_error(problem: ConvProblem, direction: str, algorithm: str) -> float:
    operands = calls.conv_operands(problem, numerics.normals())
    actual = calls.run_conv(problem, direction, operands, algorithm)
    expected = calls.run_conv(problem, direction, operands.map(lambda t: t.double()), "im2col")
    return float((actual - expected).norm() / expected.norm())


# Kernels by stride.
ACCURACY = [(1, k) for k in [(3, 3), (5, 5), (1, 3), (1, 5), (2, 2)]] + [(2, (k, k)) for k in range(3, 9)]


@pytest.mark.parametrize("channels", [16, 64, 65, 512])
@pytest.mark.parametrize("direction", ["forward", "backward_input"])
@pytest.mark.parametrize(("stride", "kernel"), ACCURACY)
def test_the_accurate_mode_is_accurate(kernel: tuple[int, int], stride: int, direction: str, channels: int) -> None:
    ends = (channels, 24) if direction == "forward" else (24, channels)
    problem = ConvProblem("accuracy", ends, (24 * stride, 24), kernel, stride=stride)
    assert normwise_error(problem, direction, "winograd:accurate") < ACCURATE
    assert normwise_error(problem, direction, "winograd:fast") < FAST


@pytest.mark.parametrize(
    ("kernel", "channels", "size", "chosen"),
    [
        (4, (128, 256), 56, True),
        (4, (32, 4), 56, True),
        (7, (64, 64), 56, True),
        (4, (3, 64), 64, False),  # planes of few inputs are faster than lanes that are empty
        (7, (3, 64), 224, False),
        (3, (3, 3), 4, False),
        (3, (256, 512), 10, False),  # 4 tiles, that go over the edge
        (3, (256, 512), 14, "avx512"),  # 4 tiles
    ],
)
def test_auto_takes_a_strided_gradient_of_the_weight_where_it_wins(
    kernel: int, channels: tuple[int, int], size: int, chosen: bool | str, isa: str
) -> None:
    x, w = torch.empty(1, channels[0], size, size), torch.empty(channels[1], channels[0], kernel, kernel)
    explanation = convext.explain("conv2d", x, w, stride=2, padding=(kernel - 1) // 2, direction="backward_weight")
    assert (explanation.chosen == "winograd") is (chosen if isinstance(chosen, bool) else isa == chosen)


@pytest.mark.parametrize(("size", "batch"), [(7, 1), (14, 1), (56, 1), (224, 4)])
@pytest.mark.parametrize(("stride", "kernel"), ACCURACY)
def test_the_gradient_of_the_weight_is_accurate(kernel: tuple[int, int], stride: int, size: int, batch: int) -> None:
    if stride == 2 and kernel[0] < 7:  # larger kernels have another tile for so many places
        size *= 2
    padding = tuple(k // 2 for k in kernel)
    problem = ConvProblem("accuracy", (8, 8), (size, size), kernel, batch=batch, padding=padding, stride=stride)
    operands = calls.conv_operands(problem, numerics.normals())
    double = operands.map(lambda t: t.double())
    expected = calls.run_conv(problem, "backward_weight", double, "im2col")
    for mode, limit in (("accurate", ACCURATE), ("fast", FAST)):
        actual = calls.run_conv(problem, "backward_weight", operands, f"winograd:{mode}")
        assert float((actual - expected).norm() / expected.norm()) < limit, mode


def test_non_finite_numbers_stay_near_what_sees_them() -> None:
    problem = ConvProblem("nan", (3, 4), (40, 40), (3, 3), padding=1)
    x, w, _ = problem.operands(numerics.integers())
    w = w.abs() + 1
    x[0, 1, 20, 21] = float("nan")
    x[0, 2, 3, 4] = float("inf")
    options = (*problem.options, "winograd")
    ours = ~ops.conv_forward(x, w, None, *options).isfinite()
    theirs = ~ops.conv_forward(x, w, None, *problem.options, "naive").isfinite()
    near = torch.nn.functional.max_pool2d(theirs.float(), 9, 1, 4) > 0
    assert (ours | ~theirs).all(), "what sees them is not finite"
    assert (near | ~ours).all(), "what is more than a tile away is finite"


def test_modes_are_chosen_per_process_and_per_call() -> None:
    x, w = torch.empty(1, 64, 56, 56), torch.empty(64, 64, 3, 3)
    assert convext.winograd() == "accurate"
    assert convext.explain("conv2d", x, w, padding=1).chosen == "winograd"
    assert convext.explain("conv2d", x, w, padding=1, algorithm="auto:off").chosen == "im2col"
    convext.set_winograd("off")
    try:
        assert convext.explain("conv2d", x, w, padding=1).chosen == "im2col"
        assert convext.explain("conv2d", x, w, padding=1, algorithm="auto:accurate").chosen == "winograd"
        assert convext.explain("conv2d", x, w, padding=1, algorithm="winograd").chosen == "winograd"
    finally:
        convext.set_winograd("accurate")
    layer = convext.Conv2d(16, 16, 5, algorithm="winograd:fast")
    fast = layer(torch.ones(1, 16, 9, 9))
    accurate = convext.functional.conv2d(torch.ones(1, 16, 9, 9), layer.weight, layer.bias, algorithm="winograd")
    torch.testing.assert_close(fast, accurate, atol=1e-4, rtol=1e-4)
    assert not torch.equal(fast, accurate)


def test_an_unknown_mode_is_refused() -> None:
    message = "winograd mode must be 'off', 'accurate' or 'fast', got 'slow'"
    with pytest.raises(ValueError, match=message):
        convext.set_winograd("slow")
    x, w = torch.empty(1, 3, 5, 5), torch.empty(2, 3, 3, 3)
    for call in (convext.functional.conv2d, lambda *a, **k: convext.explain("conv2d", *a, **k)):
        with pytest.raises(ValueError, match=message):
            call(x, w, algorithm="auto:slow")


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_a_named_winograd_trains(padding_mode: str) -> None:
    layer = convext.Conv2d(4, 6, 3, padding=1, padding_mode=padding_mode, algorithm="winograd")
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    layer(x).square().sum().backward()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), "constant" if padding_mode == "zeros" else padding_mode)
    plain = torch.nn.functional.conv2d(padded, layer.weight, layer.bias)
    expected = torch.autograd.grad(plain.square().sum(), [layer.weight, x])
    torch.testing.assert_close(layer.weight.grad, expected[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(x.grad, expected[1], atol=1e-3, rtol=1e-4)
    for direction in ("backward_weight", "backward_input"):
        assert convext.explain(layer, x, direction=direction).chosen == "winograd"


def test_a_named_winograd_leaves_to_auto_what_it_cannot() -> None:
    """It has no gradient of the input where depth is strided."""
    layer = convext.Conv3d(2, 3, 3, stride=(2, 1, 1), bias=False, algorithm="winograd")
    x = torch.randn(1, 2, 7, 8, 8, requires_grad=True)
    layer(x).square().sum().backward()
    plain = torch.nn.functional.conv3d(x, layer.weight, stride=(2, 1, 1))
    (expected,) = torch.autograd.grad(plain.square().sum(), [x])
    torch.testing.assert_close(x.grad, expected, atol=1e-3, rtol=1e-4)
    explanation = convext.explain(layer, x, direction="backward_input")
    assert explanation.chosen in ("im2col", "direct")
    assert "needs stride 1 along depth" in str(explanation)


def test_a_transposed_layer_that_names_winograd_gets_it_or_an_error() -> None:
    """Its own pass is the gradient of the input, and no gradient that may be left to "auto"."""
    x = torch.randn(1, 3, 4, 8, 8)
    layer = convext.ConvTranspose3d(3, 2, 3, stride=(2, 1, 1), bias=False, algorithm="winograd")
    functional = torch.compile(convext.functional.conv_transpose3d, backend="eager", fullgraph=True)
    for call in (layer, lambda x: functional(x, layer.weight, stride=(2, 1, 1), algorithm="winograd")):
        with pytest.raises(NotImplementedError, match=r"'winograd' cannot do this call: .* needs stride 1 along depth"):
            call(x)
    with pytest.raises(NotImplementedError, match="needs stride 1 along depth"):
        convext.explain(layer, x)
    able = convext.ConvTranspose2d(3, 2, 4, stride=2, algorithm="winograd")
    y = torch.randn(1, 3, 8, 8, requires_grad=True)
    assert convext.explain(able, y).chosen == convext.explain(able, y, direction="backward_input").chosen == "winograd"
    assert convext.explain(able, y, direction="backward_weight").chosen == "winograd"
    assert convext.explain(able, y).asked == "winograd"
    able(y).square().sum().backward()
    plain = torch.nn.functional.conv_transpose2d(y, able.weight, able.bias, stride=2)
    expected = torch.autograd.grad(plain.square().sum(), [able.weight, y])
    torch.testing.assert_close(able.weight.grad, expected[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(y.grad, expected[1], atol=1e-3, rtol=1e-4)
