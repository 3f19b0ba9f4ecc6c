"""The model by which "auto" chooses on a GPU: asked for any GPU, in every build."""

from __future__ import annotations

import math

import pytest
import torch

import convext
from benchmarks.shapes import CONVOLUTIONS, ConvProblem
from convext import _C, choice
from convext.choice import DIRECTIONS

EVERY = ["winograd", "implicit_gemm", "im2col", "direct", "naive"]
GPUS = {"T4": (75, 40), "A100": (80, 108), "A10": (86, 72), "L4": (89, 58), "H200": (90, 132), "later": (120, 160)}
MATRIX = {"implicit_gemm", "im2col"}

every_gpu = pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def ask(
    problem: ConvProblem,
    direction: str = "forward",
    gpu: tuple[int, int] | None = None,
    able: list[str] = EVERY,
    dtype: str = "float32",
    channels_last: bool = False,
    algorithm: str = "auto",
) -> tuple[str, dict[str, float]]:
    arguments = (list(problem.input_shape), list(problem.weight_shape), *problem.options, channels_last)
    return _C.cuda_model(*arguments, dtype, direction, algorithm, able, gpu)


def square(channels: tuple[int, int], size: int, kernel: int, **rest: object) -> ConvProblem:
    layer = ConvProblem("layer", channels, (size, size), (kernel, kernel), padding=kernel // 2)
    return layer.with_(**rest)


DENSE = square((256, 256), 56, 3)
POINTWISE = square((256, 512), 28, 1)
DEPTHWISE = [
    square((144, 144), size, k, groups=144, stride=s)
    for size, k, s in ((56, 3, 1), (14, 7, 1), (56, 31, 1), (28, 5, 2))
]
CAUSAL = ConvProblem("causal", (1024, 1024), (2048,), (4,), padding=((3, 0),), groups=1024)


@every_gpu
@every_direction
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("problem", [*DEPTHWISE, CAUSAL], ids=lambda p: f"{p.size[-1]}-{p.kernel[-1]}")
def test_depthwise_is_direct(problem: ConvProblem, dtype: str, direction: str, gpu: tuple[int, int]) -> None:
    for channels_last in (False, True):
        assert ask(problem, direction, gpu, dtype=dtype, channels_last=channels_last)[0] == "direct"


@every_gpu
@every_direction
@pytest.mark.parametrize("problem", [DENSE, POINTWISE, square((64, 64), 56, 3), square((512, 512), 7, 3, stride=2)])
def test_dense_halves_go_to_tensor_cores(problem: ConvProblem, direction: str, gpu: tuple[int, int]) -> None:
    assert ask(problem, direction, gpu, dtype="float16")[0] == "implicit_gemm"


@every_gpu
@every_direction
def test_wide_float32_is_winograd(direction: str, gpu: tuple[int, int]) -> None:
    assert ask(DENSE, direction, gpu)[0] == "winograd"
    assert ask(DENSE, direction, gpu, algorithm="auto:off")[0] in MATRIX
    assert ask(POINTWISE, direction, gpu, [name for name in EVERY if name != "winograd"])[0] in MATRIX


@every_gpu
@every_direction
@pytest.mark.parametrize("problem", [DENSE, POINTWISE, square((128, 128), 28, 3, stride=2)])
def test_float64_is_im2col(problem: ConvProblem, direction: str, gpu: tuple[int, int]) -> None:
    able = [name for name in EVERY if name != "implicit_gemm"]  # which refuses float64
    assert ask(problem, direction, gpu, able, dtype="float64")[0] == "im2col"


@every_gpu
@every_direction
def test_few_channels_a_group_are_direct(direction: str, gpu: tuple[int, int]) -> None:
    """Too few to fill tiles: unfolding would be wasted."""
    able = ["im2col", "direct", "naive"]
    assert ask(square((128, 128), 56, 3, groups=32), direction, gpu, able)[0] == "direct"
    assert ask(square((1, 1), 512, 3), direction, gpu, able)[0] == "direct"


FEW = [
    problem
    for problem in CONVOLUTIONS
    if problem.groups == 1 and problem.dtype == torch.float32 and min(problem.channels) <= 4 and not problem.transposed
]


@every_gpu
@pytest.mark.parametrize("problem", FEW, ids=str)
def test_few_channels_are_direct(problem: ConvProblem, gpu: tuple[int, int]) -> None:
    """First layers and layers that make an image; what is few read and what is made change places in the gradient."""
    for channels_last in (False, True):
        for direction in DIRECTIONS:
            chosen, seconds = ask(problem, direction, gpu, channels_last=channels_last)
            assert chosen == "direct" or seconds["direct"] < 1.1 * seconds[chosen]


@pytest.mark.parametrize("problem", CONVOLUTIONS, ids=str)
def test_estimates_of_real_layers(problem: ConvProblem) -> None:
    dtype = choice._name_of(problem.dtype)
    for gpu in GPUS.values():
        for direction in DIRECTIONS:
            for channels_last in (False, True):
                chosen, seconds = ask(problem, direction, gpu, dtype=dtype, channels_last=channels_last)
                assert list(seconds) == EVERY
                assert all(0 < value < 60 and math.isfinite(value) for value in seconds.values())
                assert chosen != "naive"
                others = ask(problem.with_(batch=37), direction, gpu, dtype=dtype, channels_last=channels_last)
                assert others == (chosen, seconds), "the batch must not count"


@every_gpu
def test_naive_is_the_slowest_of_dense_layers(gpu: tuple[int, int]) -> None:
    for direction in DIRECTIONS:
        seconds = ask(DENSE, direction, gpu)[1]
        assert max(seconds, key=lambda name: seconds[name]) == "naive"


def test_the_model_knows_the_bounds_of_a_gpu() -> None:
    """No estimate is below what the H200's data sheet allows; more of the same GPU takes less time."""
    gpu = GPUS["H200"]
    for dtype, teraflops, size in (("float32", 67, 4), ("float16", 989, 2)):
        for problem in (DENSE, POINTWISE):
            least = 16 * max(2 * problem.multiply_adds / (teraflops * 1e12), problem.bytes_moved(size) / 1.1 / 4.8e12)
            seconds = ask(problem, gpu=gpu, dtype=dtype)[1]
            assert all(value > least for name, value in seconds.items() if name != "winograd")
            assert seconds["winograd"] > least / 4
            half = ask(problem, gpu=(90, 66), dtype=dtype)[1]
            assert all(half[name] > seconds[name] for name in EVERY)


def test_what_is_not_able_is_not_chosen() -> None:
    for name in EVERY:
        assert ask(DENSE, able=[name])[0] == name
    assert ask(DENSE, able=["somebody's own", "naive"]) == (
        "naive",
        {"somebody's own": math.inf, "naive": pytest.approx(ask(DENSE)[1]["naive"])},
    )
    with pytest.raises(ValueError, match="able"):
        ask(DENSE, able=[])


def test_without_a_gpu_the_model_answers_for_an_h200() -> None:
    if _C.built_with_cuda():
        pytest.skip("built with CUDA: the current device's answer")
    assert ask(DENSE) == ask(DENSE, gpu=GPUS["H200"])


def test_an_explanation_tells_the_estimates() -> None:
    answer = ("a call", "direct", [("implicit_gemm", "cannot", 0), ("direct", None, 2048), ("naive", None, 0)], False)
    asked: list[list[str]] = []

    def estimates(able: list[str]) -> dict[str, float]:
        asked.append(able)
        return {"direct": 12.3456e-6, "naive": 1e-3}

    told = choice._explanation(answer, "forward", "auto", estimates)  # type: ignore[arg-type]
    assert asked == [["direct", "naive"]]
    assert [verdict.estimate for verdict in told.verdicts] == [None, 12.3456e-6, 1e-3]
    assert str(told).splitlines() == [
        "a call, forward: direct",
        "  implicit_gemm cannot: cannot",
        "  direct        runs, workspace 2 kB, estimate 12.3 us",
        "  naive         could run, estimate 1e+03 us",
    ]
    assert all(
        verdict.estimate is None
        for verdict in convext.explain(convext.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8)).verdicts
    )


def test_nothing_is_tuned_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    ran = []

    def model(x: torch.Tensor) -> torch.Tensor:
        ran.append(x)
        return x

    with pytest.raises(RuntimeError, match="graph is being captured"):
        convext.tune(model, torch.ones(1))
    assert ran == []
    capturing = False
    assert convext.tune(model, torch.ones(1)).choices == ()
    assert len(ran) == 1
