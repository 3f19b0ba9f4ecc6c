"""The benchmark: its problems, that it times only what is right, and its report."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import convext
from benchmarks import compiled, contenders, inference, models, networks, peers, report, run, sweep, tables, timing
from benchmarks.contenders import Case, Contender
from benchmarks.cores import Cores
from benchmarks.layers import OTHER_NETWORKS, Layer
from benchmarks.shapes import CONVOLUTIONS, POOLS, ConvProblem, PoolProblem

PROBLEMS = (*CONVOLUTIONS, *POOLS)

SMALL = (
    ConvProblem("plain", (6, 5), (9, 7), (3, 3), stride=2, padding=1),
    ConvProblem("depthwise", (4, 8), (6, 6), (3, 3), padding=1, groups=4, dilation=2),
    ConvProblem("causal", (6, 6), (19,), (4,), padding=((3, 0),), groups=6),
    ConvProblem("solid", (2, 3), (4, 5, 6), (3, 3, 3), padding=1),
    PoolProblem("max", False, 3, (9, 8), (3, 3), stride=2, padding=1),
    PoolProblem("average", True, 3, (9, 8), (3, 3), stride=1, padding=1),
)
CASES = [Case(p, d) for p in SMALL for d in contenders.directions(p)]
PEAKS = timing.Peaks(1, gflops=100.0, how="", gemm_gflops=90.0, copy_gbs={2**20: 40.0, 2**28: 10.0})


def ids(case: Case) -> str:
    return f"{case.problem}-{case.direction}"


# Problems ----------------------------------------------------------------------------------------------------------


def test_problems_have_names_of_their_own() -> None:
    names = [p.name for p in PROBLEMS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_problem_is_well_formed(problem: contenders.Problem) -> None:
    assert len(problem.kernel) == problem.spatial
    assert min(problem.output_shape) > 0
    assert problem.tags <= {"quick", "large"}
    numbers = math.prod(problem.input_shape) + math.prod(problem.output_shape)
    if isinstance(problem, ConvProblem):
        assert problem.channels[0] % problem.groups == problem.channels[1] % problem.groups == 0
        numbers += math.prod(problem.weight_shape)
        assert problem.multiply_adds == math.prod(problem.output_shape) * math.prod(problem.weight_shape[1:])
    else:
        assert problem.spatial > 1  # torch has no gradient operators for one dimension to compare with
    assert problem.bytes_moved() == 4 * numbers


def test_quick_mode_has_both_kinds() -> None:
    quick = [p for p in PROBLEMS if "quick" in p.tags]
    assert {type(p) for p in quick} == {ConvProblem, PoolProblem}
    assert not any("large" in p.tags for p in quick)


# Verification ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_everyone_is_right(case: Case) -> None:
    everyone = contenders.contenders(case)
    accuracy, calls, refusals = run.verify(case, everyone)
    assert calls.keys() | refusals.keys() == {c.name for c in everyone}
    op = f"conv{case.problem.spatial}d" if isinstance(case.problem, ConvProblem) else f"max_pool{case.problem.spatial}d"
    for layout in case.layouts:
        for variant in ("auto", *convext.algorithms(op)):
            name = Contender("convext", variant, layout, lambda o: lambda: o.x).name
            assert name in calls or refusals[name], name
    assert all(0 <= found.of_bound <= 1 for found in accuracy.values())


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("harm", ["one element", "nan", "shape"])
def test_a_wrong_kernel_is_not_timed(case: Case, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = contenders.contenders(case)[0]

    def prepare(operands: contenders.Operands) -> timing.Call:
        good = right.prepare(operands)()
        if harm == "shape":
            return lambda: good[..., :-1]
        bad = good.clone()
        # by one unit for integers: what one wrong product amounts to at least
        bad.view(-1)[-1] = math.nan if harm == "nan" else bad.view(-1)[-1] + 1
        return lambda: bad

    wrong = Contender("convext", "wrong", "contiguous", prepare, "wrong", exact=case.integers_stay_exact)
    monkeypatch.setattr(run, "contenders", lambda _case: [right, wrong])
    row = run.run_row(case, PEAKS, 0.01, [])
    assert row["error"].startswith("convext wrong: ")
    assert row["contenders"] == []


def test_small_integers_catch_what_the_bound_lets_pass() -> None:
    """The gradient of a weight sums so many products that the bound for normal numbers hides a missing one."""
    case = Case(ConvProblem("long sum", (1, 1), (256, 256), (1, 1)), "backward_weight")
    assert case.integers_stay_exact

    def forgets_a_product(o: contenders.Operands) -> timing.Call:
        def call() -> torch.Tensor:
            products = o.x * o.dy
            products.view(-1)[products.abs().argmax()] = 0
            return products.sum().view(1, 1, 1, 1)

        return call

    operands = case.operands(contenders.normal(run.SEED), "contiguous")
    timing.check(forgets_a_product(operands)(), case.reference(operands))
    forgetful = Contender("convext", "wrong", "contiguous", forgets_a_product, "wrong", exact=True)
    with pytest.raises(timing.Mismatch, match="convext wrong"):
        run.verify(case, [forgetful])


def test_winograd_may_round_but_not_miss_a_product() -> None:
    """Its sums of integers are integers after rounding; its norm-wise error has a limit of its own."""
    case = Case(SMALL[0], "forward")

    def off_by(amount: float) -> Contender:
        def prepare(o: contenders.Operands) -> timing.Call:
            return lambda: contenders.torch_conv(case.problem, "forward")(o)() + amount  # type: ignore[arg-type]

        return Contender("convext", "winograd", "contiguous", prepare, exact=True, rounded=True, error_factor=1e9)

    run.verify(case, [off_by(0.1)])
    with pytest.raises(timing.Mismatch, match="convext winograd"):
        run.verify(case, [off_by(1.0)])
    value = torch.ones(3, dtype=torch.float64)
    reference = timing.Reference(value, value, 10**6)
    timing.check(torch.full((3,), 1 + 1e-6), reference, norm_limit=2e-6)
    with pytest.raises(timing.Mismatch, match="norm-wise"):
        timing.check(torch.full((3,), 1 + 1e-5), reference, norm_limit=2e-6)
    for c in contenders.contenders(case):
        assert c.rounded == (c.algorithm == "winograd")


def test_bound_is_the_rounding_of_a_sum() -> None:
    assert timing.gamma(1) == pytest.approx(2.0**-24)
    assert timing.gamma(1000) > 1000 * 2.0**-24
    value = torch.ones(3, dtype=torch.float64)
    exact = timing.check(torch.ones(3), timing.Reference(value, value, 1))
    assert (exact.of_bound, exact.relative) == (0, 0)
    with pytest.raises(timing.Mismatch, match=r"3 of 3 .* the first at \(0,\)"):
        timing.check(torch.full((3,), 1 + 2.0**-23), timing.Reference(value, value, 1))


@pytest.mark.parametrize("shape", [(2, 3, 20), (1, 2, 5, 30), (1, 1, 3, 4, 17)])
def test_the_magnitude_of_a_tile_is_its_greatest(shape: tuple[int, ...]) -> None:
    magnitude = torch.rand(shape, dtype=torch.float64)
    spatial = magnitude.dim() - 2
    pool = getattr(torch.nn.functional, f"max_pool{spatial}d")
    wanted = pool(torch.nn.functional.pad(magnitude, (8,) * 2 * spatial), 17, 1)
    assert torch.equal(timing.Reference(magnitude, magnitude, 1).of_tiles().magnitude, wanted)


# Timing ------------------------------------------------------------------------------------------------------------


class Clock:
    """A call that says how long it took."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.turns = seconds, 0

    def __call__(self) -> torch.Tensor:
        raise AssertionError("a call that measures itself is asked for seconds only")

    def seconds(self, repeats: int) -> float:
        self.turns += 1
        return self._seconds


def test_turns_are_fair_and_medians_right() -> None:
    calls = {"fast": Clock(0.01), "slow": Clock(10.0)}
    timings = timing.take_turns(calls, 1.0, random.Random(0))
    assert timings["fast"].median == 0.01
    assert timings["slow"].median == 10.0
    assert timings["slow"].turns == timing.MIN_TURNS
    assert timings["fast"].turns == timing.MAX_TURNS
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert timing.Timing.of(samples).median == statistics.median(samples)


class Machine:
    """Calls take 1 s, and 2 s while something disturbs: ``when`` says at which turns and questions."""

    def __init__(self, when: Callable[[int], bool]) -> None:
        self._when, self._now = when, 0

    def __call__(self) -> torch.Tensor:
        raise AssertionError("a call that measures itself is asked for seconds only")

    def seconds(self, repeats: int) -> float:
        self._now += 1
        return 2.0 if self._when(self._now) else 1.0

    def undisturbed(self) -> bool:
        self._now += 1
        return not self._when(self._now)


def test_disturbed_turns_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SPAN_SECONDS", 0.0)
    monkeypatch.setattr(timing, "MOVED_SECONDS", 0.0)
    some = Machine(lambda now: 4 <= now <= 9)
    found = timing.take_turns({"call": some}, 60.0, random.Random(0), undisturbed=some.undisturbed)["call"]
    assert (found.lower, found.upper, found.disturbed) == (1.0, 1.0, 0)
    never = Machine(lambda now: True)
    found = timing.take_turns({"call": never}, 0.01, random.Random(0), undisturbed=never.undisturbed)["call"]
    assert found.median == 2.0
    assert found.turns == timing.MIN_TURNS
    assert found.disturbed > 0
    assert timing.disturbed_share({"call": found}) == found.disturbed / found.turns


def test_cores_are_compared_with_their_best(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, near, apart = (30e-9, 130e-6), (50e-9, 65e-6), (160e-9, 65e-6)
    cores = Cores(2)
    for probe, good in [(shared, True), (near, True), (shared, False), (apart, False), (near, True), (None, True)]:
        monkeypatch.setattr(Cores, "probe", lambda self, found=probe: found)
        assert cores.good() is good


@pytest.mark.skipif(run.usable_cores() < 2 or shutil.which("cc") is None, reason="needs two cores and a C compiler")
def test_cores_are_probed() -> None:
    affinity = os.sched_getaffinity(0)
    found = Cores(2).probe()
    assert found is not None
    assert all(0 < seconds < 1 for seconds in found)
    assert os.sched_getaffinity(0) == affinity
    assert Cores(1).probe() is None
    assert Cores(len(affinity) + 1).probe() is None


def test_bound_of_a_layer() -> None:
    assert PEAKS.least_seconds(10**9, 2**20) == ("fma", pytest.approx(2 / 100))
    assert PEAKS.least_seconds(0, 2**20) == ("copy", pytest.approx(2**20 / 40e9))
    assert PEAKS.least_seconds(0, 2**30) == ("copy", pytest.approx(2**30 / 10e9))


def test_ratios_compare_layouts() -> None:
    def one(library: str, variant: str, layout: str) -> Contender:
        return Contender(library, variant, layout, lambda o: lambda: o.x)

    times = {
        one("torch", "", "contiguous"): 8.0,
        one("torch", "", "channels_last"): 6.0,
        one("torch", "prepacked", "channels_last"): 3.0,
        one("convext", "auto", "contiguous"): 4.0,
        one("convext", "direct", "contiguous"): 2.0,
        one("convext", "auto", "channels_last"): 12.0,
        one("onnxruntime", "", "contiguous"): 5.0,
    }
    timings = {c.name: timing.Timing(t, t, t, 3) for c, t in times.items()}
    assert run.ratios(list(times), timings) == {
        "auto contiguous": 2.0,
        "auto channels_last": 0.5,
        "auto any": 0.75,
        "auto peers": 1.25,
        "best contiguous": 4.0,
        "best channels_last": 0.5,
        "best any": 1.5,
        "best peers": 2.5,
    }


def test_peers_are_asked_what_the_layer_computes() -> None:
    """A transposed layer's input is the mirror's gradient of the output; other dtypes and directions ask nobody."""
    asked: list[tuple[Any, ...]] = []

    class Listening(peers.Worker):
        def ask(self, *request: Any) -> None:
            asked.append(request)

    mirror = ConvProblem("up", (4, 6), (8, 8), (2, 2), stride=2, transposed=True)
    case = Case(mirror, "forward")
    (peer,) = contenders.peers(case, [Listening("ncnn")], threads=1)
    peer.prepare(case.operands(contenders.normal(run.SEED), "contiguous"))
    ((_, spec, x, w, threads),) = asked
    assert (spec["kind"], spec["output"], threads) == ("transposed", [1, 4, 8, 8], 1)
    assert (x.shape, w.shape) == ((1, 6, 4, 4), (6, 4, 2, 2))
    assert contenders.peers(Case(mirror, "backward_input"), [Listening("ncnn")], threads=1) == []
    assert contenders.peers(Case(mirror.with_(dtype=torch.float64), "forward"), [Listening("ncnn")], 1) == []


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_compute_what_torch_does(name: str) -> None:
    """Where `make peers` has installed them."""
    python = peers.ROOT / ".venv-peers" / "bin" / "python"
    if not python.exists() or not peers.installed(str(python))[name]:
        pytest.skip(f"{name} is not installed in .venv-peers (make peers)")
    worker = peers.Worker(name, str(python))
    up = ConvProblem("up", (4, 6), (8, 8), (2, 2), stride=2, transposed=True)
    refused: set[tuple[str, str]] = set()
    try:
        for problem in (*SMALL, up):
            case = Case(problem, "forward")
            _, _, refusals = run.verify(case, contenders.peers(case, [worker], threads=1))
            refused |= {(problem.name, why) for why in refusals.values()}
    finally:
        worker.close()
    assert not refused


def test_peers_are_listed_and_a_broken_one_refuses() -> None:
    assert peers.installed().keys() == peers.PEERS.keys()
    worker = peers.Worker("no such runtime")
    with pytest.raises(peers.Refused):
        worker.ask("prepare", {}, None, None, 1)
    worker.close()


# The program and its report ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real run of two problems, with the smallest budget."""
    path = tmp_path_factory.mktemp("benchmark") / "result.json"
    threads = torch.get_num_threads()
    patch = pytest.MonkeyPatch()
    patch.setattr(run, "QUICK_ROW_SECONDS", 0.02)
    patch.setattr(run, "CONVOLUTIONS", tuple(p.with_(tags=frozenset({"quick"})) for p in SMALL[:2]))
    patch.setattr(run, "POOLS", tuple(p.with_(tags=frozenset({"quick"})) for p in SMALL[4:]))
    try:
        assert run.main(["--quick", "--threads", "1", "--output", str(path)]) == 0
    finally:
        patch.undo()
        torch.set_num_threads(threads)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_result_says_what_was_measured(result: dict[str, Any]) -> None:
    assert result["mode"] == "partial"
    assert result["isa"] in convext._C.available_isas()
    assert len(result["rows"]) == 2 * 3 + 2 * 2
    assert result["peaks"][0]["fma_gflops"] > 0
    assert result["peaks"][0]["gemm_gflops"] > 0
    for row in result["rows"]:
        assert row["error"] is None
        timed = [c for c in row["contenders"] if "seconds" in c]
        assert {"torch", "convext"} <= {c["library"] for c in timed}
        for c in timed:
            assert c["seconds"] > 0
            assert c["turns"] >= timing.MIN_TURNS
            assert c["gflops"] == pytest.approx(row["flops"] / c["seconds"] / 1e9)
            assert c["share_of_bound"] == pytest.approx(row["least_seconds"] / c["seconds"])
        assert all("refused" in c for c in row["contenders"] if "seconds" not in c)


def test_a_wrong_row_fails_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = Contender("convext", "auto", "contiguous", lambda o: lambda: o.x, "wrong")
    monkeypatch.setattr(run, "contenders", lambda _case: [wrong])
    monkeypatch.setattr(run, "CONVOLUTIONS", SMALL[:1])
    monkeypatch.setattr(run, "POOLS", ())
    threads = torch.get_num_threads()
    out = tmp_path / "result.json"
    try:
        assert run.main(["--threads", "1", "--directions", "forward", "--output", str(out)]) == 1
    finally:
        torch.set_num_threads(threads)
    (row,) = json.loads(out.read_text())["rows"]
    assert "shape" in row["error"]


def test_report_is_idempotent(result: dict[str, Any], tmp_path: Path) -> None:
    source, readme, images = tmp_path / "result.json", tmp_path / "README.md", tmp_path / "images"
    source.write_text(json.dumps(result))
    readme.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    arguments = [str(source), "--readme", str(readme), "--images", str(images)]
    assert report.main(arguments) == 0
    first = readme.read_text()
    assert report.main(arguments) == 0
    assert readme.read_text() == first
    assert first.startswith(f"before\n\n{report.BEGIN}\n")
    assert first.endswith(f"{report.END}\n\nafter\n")
    assert "old" not in first
    for problem in (*SMALL[:2], *SMALL[4:]):
        assert f"| {problem.name} |" in first
    assert {path.name for path in images.iterdir()} == {"benchmark.png", "roofline.png"}


def timed(library: str, variant: str, layout: str, seconds: float) -> dict[str, Any]:
    algorithm = {"algorithm": "direct"} if library == "convext" else {}
    name = {"library": library, "variant": variant, "layout": layout}
    return name | algorithm | {"seconds": seconds, "share_of_bound": 0.5}


def made_up(isa: str, date: str, isas: tuple[str, ...] = ("baseline", "avx2")) -> dict[str, Any]:
    """A full result of one layer and direction."""
    everyone = [
        timed("torch", "", "contiguous", 8e-3),
        timed("torch", "prepacked", "channels_last", 3e-3),
        timed("convext", "auto", "contiguous", 2e-3),
        timed("ncnn", "", "contiguous", 1e-3),
        timed("mnn", "", "contiguous", 1.5e-3),
    ]
    ratios = {"auto contiguous": 4.0, "auto any": 1.5, "auto peers": 0.5}
    key = {"kind": "convolution", "direction": "forward", "threads": 1}
    return {
        "mode": "full",
        "date": date,
        "isa": isa,
        "isas": list(isas),
        "threads": [1],
        "machine": {"cpu": "a processor"},
        "versions": {"torch": "2", "ncnn": "1"},
        "peaks": [PEAKS.as_json()],
        "means": [key | {"ratios": ratios}],
        "rows": [key | {"problem": "layer", "error": None, "contenders": everyone, "ratios": ratios}],
    }


def test_tables_name_the_best_peer_and_every_ratio() -> None:
    result = made_up("avx2", "2024-05-01T00:00:00")
    header, _, row, mean = report.forward_table(result, "convolution", 1)
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["best peer"] == "ncnn 1"
    assert cells["torch prepacked"] == "3"
    assert [cells[name] for name in ("x torch", "x torch channels_last", "x fastest torch")] == ["4.00", "", "1.50"]
    assert row.endswith(" | 0.50 |")
    assert mean.endswith("| **4.00** |  | **1.50** | **0.50** |")
    text = report.markdown(result)
    assert "faster than torch in any layout in 1 of 1 and than the best peer in 0 of 1" in text
    assert "By instruction set" not in text


def test_report_has_a_line_for_each_instruction_set(tmp_path: Path) -> None:
    for isa, date in (("avx2", "2024-05-02"), ("baseline", "2024-05-03"), ("avx2", "2024-05-01")):
        result = made_up(isa, f"{date}T00:00:00")
        (tmp_path / f"{date}-{isa}.json").write_text(json.dumps(result))
    assert report.newest(tmp_path).name == "2024-05-02-avx2.json"  # the best that the machine has, not the latest
    by_isa = report.newest_by_isa(tmp_path)
    assert {isa: result["date"][:10] for isa, result in by_isa.items()} == {
        "avx2": "2024-05-02",
        "baseline": "2024-05-03",
    }
    text = report.markdown(by_isa["avx2"], by_isa)
    assert "| avx2 | a processor | 2024-05-02 | 4.00 |  | 1.50 | 0.50 |" in text
    assert "| baseline | a processor | 2024-05-03 | 4.00 |" in text


@pytest.mark.parametrize("text", ["", report.BEGIN, f"{report.END}{report.BEGIN}", 2 * f"{report.BEGIN}{report.END}"])
def test_report_needs_its_markers(text: str) -> None:
    with pytest.raises(ValueError, match="each once"):
        report.fill(text, "content")


def test_report_takes_the_newest_full_result(tmp_path: Path) -> None:
    for name, mode, date in (
        ("a", "full", "2024-05-02T00:00:00"),
        ("b", "full", "2024-05-01T00:00:00"),
        ("c", "partial", "2024-05-03T00:00:00"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"mode": mode, "date": date}))
    assert report.newest(tmp_path).name == "a.json"
    with pytest.raises(FileNotFoundError):
        report.newest(tmp_path / "none")


# Whole networks ------------------------------------------------------------------------------------------------------

PARAMETERS = {
    "VGG-16": 138_357_544,
    "ResNet-18": 11_689_512,
    "ResNet-50": 25_557_032,
    "MobileNetV2": 3_504_872,
    "EfficientNet-B0": 5_288_548,
    "DenseNet-121": 7_978_856,
    "SqueezeNet 1.1": 1_235_496,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_papers_parameters(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in networks.NETWORKS[name]().parameters()) == PARAMETERS[name]


def test_a_network_is_verified_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BUDGET_SECONDS", 0.01)
    before = torch.get_num_threads()
    row = models.measure("MobileNetV2", before)
    assert set(row["seconds"]) == {f"{who} {layout}" for who in ("torch", "convext") for layout in models.FORMATS}
    assert 0 < row["error"] < models.NORM_LIMIT
    assert "MobileNetV2" in models.line(row)


@pytest.mark.parametrize("network", ["ResNet-18", "SqueezeNet 1.1"])  # the latter with dropout
def test_a_training_step_is_verified_timed_and_its_memory_measured(
    monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    monkeypatch.setattr(models, "BUDGET_SECONDS", 0.01)
    monkeypatch.setattr(models, "SIZE", 64)
    row = models.measure(network, torch.get_num_threads(), "training")
    assert set(row["peak_bytes"]) == set(row["seconds"])
    assert min(row["peak_bytes"].values()) > 4 * PARAMETERS[network]  # their gradients at the least
    assert "peak, MB" in models.line(row)
    table = tables.networks_table({"rows": [row]}, "training")
    assert len(table) == 3
    assert table[2].startswith(f"| {network} |")
    assert tables.networks_table({"rows": [row]}, "forward") == []


def test_a_run_of_optimized_networks_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def measure(name: str, batch: int, threads: int, *_: object) -> dict[str, object]:
        asked.append((threads, batch, name))
        return {"network": name, "batch": batch, "threads": threads, "ratio": 1.0, "ratio_torch": 1.0}

    monkeypatch.setattr(inference, "measure", measure)
    monkeypatch.setattr(inference, "line", lambda row: str(row))
    monkeypatch.setattr(inference, "installed", lambda _: dict.fromkeys(inference.ENGINES))
    output = tmp_path / "rows.json"
    options = ["--batches", "1", "--output", str(output), "--resume"]
    inference.main([*options, "--threads", "2", "--networks", "U-Net"])
    inference.main([*options, "--threads", "1", "2", "--networks", "ResNet-18", "U-Net"])
    assert asked == [(2, 1, "U-Net"), (1, 1, "ResNet-18"), (1, 1, "U-Net"), (2, 1, "ResNet-18")]
    rows = json.loads(output.read_text())["rows"]
    assert [(row["threads"], row["network"]) for row in rows] == [
        *((1, "ResNet-18"), (1, "U-Net")),
        *((2, "ResNet-18"), (2, "U-Net")),
    ]
    monkeypatch.setattr(inference, "SIZE", 64)
    with pytest.raises(ValueError, match="has size 224, this run 64"):
        inference.main(options)


def test_a_wrong_network_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "NORM_LIMIT", 1e-12)
    with pytest.raises(timing.Mismatch, match="norm-wise error"):
        models.calls_of("MobileNetV2")


def test_a_wrong_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WIDE_LIMIT", 0.0)
    monkeypatch.setattr(models, "SIZE", 64)
    with pytest.raises(timing.Mismatch, match="a step's error"):
        models.steps_of("MobileNetV2")


def test_optimized_networks_are_verified_timed_and_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inference, "BUDGET_SECONDS", 0.01)
    monkeypatch.setattr(inference, "SIZE", 64)
    row = inference.measure(
        "SqueezeNet 1.1", 1, torch.get_num_threads(), [peers.Worker("no such runtime")], False, tmp_path
    )
    assert set(row["seconds"]) == {"torch contiguous", "torch channels_last", "convext"}
    assert list(row["missing"]) == ["no such runtime"]
    assert 0 < row["errors"]["convext"] < models.NORM_LIMIT
    assert row["ratio"] == row["seconds"][row["best"]] / row["seconds"]["convext"]
    assert "SqueezeNet 1.1, batch 1" in inference.line(row)
    table = tables.inference_table({"rows": [row]})
    assert len(table) == 4
    assert table[2].startswith("| SqueezeNet 1.1 | 1 |")
    monkeypatch.setattr(inference, "NORM_LIMIT", 0.0)
    with pytest.raises(timing.Mismatch, match="norm-wise error"):
        inference.measure("SqueezeNet 1.1", 1, torch.get_num_threads(), [], False, tmp_path)


def test_compiled_layers_are_verified_timed_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "3x3 16-16 8, ReLU (small)"
    monkeypatch.setattr(torch, "compile", lambda model, fullgraph: model)  # test_compile.py has it
    rows = [compiled.measure(name, what, torch.get_num_threads(), 0.01) for what in compiled.PASSES]
    for row in rows:
        assert set(row["seconds"]) == {"torch", "torch compiled", "convext", "convext compiled"}
        assert row["ratio"] == row["seconds"]["convext"] / row["seconds"]["convext compiled"]
        assert 0 <= row["errors"]["convext"] < models.NORM_LIMIT
        assert f"{name}, {row['pass']}" in compiled.line(row)
    result = {"rows": rows, "isa": "avx2", "date": "2024-05-01T00:00:00"}
    text = "\n".join(tables.sections(None, None, result))
    assert text.count(f"| {name} |") == 2
    assert "**Under torch.compile**, avx2 kernels, 2024-05-01" in text
    monkeypatch.setattr(compiled, "NORM_LIMIT", -1.0)
    with pytest.raises(timing.Mismatch, match="norm-wise error"):
        compiled.measure(name, "inference", torch.get_num_threads(), 0.01)


# Layers of other networks, and random ones ----------------------------------------------------------------------------


def test_random_layers_fit_and_repeat() -> None:
    drawn = [[sweep.random_layer(rng) for _ in range(200)] for rng in (random.Random(3), random.Random(3))]
    assert drawn[0] == drawn[1]
    assert all(layer.fits() for layer in drawn[0])
    assert {layer.kind for layer in drawn[0]} == set(sweep.RANDOM)
    assert len(set(map(str, OTHER_NETWORKS))) == len(OTHER_NETWORKS)
    for layer in (*drawn[0], *OTHER_NETWORKS):
        x, w = (torch.empty(shape, device="meta") for shape in (layer.input_shape, layer.weight_shape))
        y = layer.of(torch.nn.functional)(x, w)
        assert y.shape == (layer.batch, layer.outputs, *layer.output_size), str(layer)


@pytest.mark.parametrize("direction", sweep.DIRECTIONS)
def test_random_layers_are_verified_timed_and_reported(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer("dense", 1, 8, 8, (7, 7), (3, 3), (2, 2), (1, 1), (1, 1))
    assert str(layer) == "3x3 8-8 7x7 stride 2 padding 1"
    odd = dataclasses.replace(layer, network="Net", transposed=True, stride=(2, 3), padding=(0, 0), batch=4)
    assert str(odd) == "Net transposed 3x3 8-8 7x7 batch 4 stride 2x3"
    row = sweep.time_row(layer, "channels_last", direction, 0.01, random.Random(0))
    assert set(row["seconds"]) == {"torch", "auto", *sweep.ALGORITHMS}
    assert all(seconds > 0 for seconds in row["seconds"].values())
    assert tables.sweep_ratio(row) == row["seconds"]["torch"] / row["seconds"]["auto"]
    assert sweep.slowest([row], 1)[0].startswith(f"{tables.sweep_ratio(row):.2f}  {layer}, channels_last, {direction}")
    monkeypatch.setattr(sweep, "LIMIT", -1.0)
    with pytest.raises(timing.Mismatch, match=f"{direction}: .* from torch"):
        sweep.time_row(layer, "channels_last", direction, 0.01, random.Random(0))


def test_layers_of_networks_come_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "OTHER_NETWORKS", OTHER_NETWORKS[:1])
    rows = sweep.sweep(torch.get_num_threads(), 1, ["networks"], 60, 0.001)
    assert [row["layer"] for row in rows] == 6 * [str(OTHER_NETWORKS[0])]
    assert {(row["kind"], row["layout"], row["direction"]) for row in rows} == {
        ("networks", layout, direction) for layout in ("contiguous", "channels_last") for direction in sweep.DIRECTIONS
    }


def test_table_of_random_layers() -> None:
    def row(direction: str, seconds: list[float], kind: str = "dense", threads: int = 1) -> dict[str, Any]:
        named = dict(zip(("torch", "auto", "im2col", "direct"), seconds, strict=True))
        return {"layer": "", "kind": kind, "layout": "", "direction": direction, "threads": threads, "seconds": named}

    rows = [
        row("forward", [4.0, 2.0, 2.0, 3.0]),
        row("forward", [8.0, 1.0, 1.0, 3.0]),
        row("input", [1.0, 2.0, 2.0, 1.0]),
        row("weight", [3.0, 1.0, 0.99, 1.0], "3d"),
        row("weight", [5.0, 1.0, 1.0, 1.0], "3d", 2),
    ]
    lines = tables.sweep_table({"rows": rows})
    assert lines[2:] == [
        "| 3d | 1 | 1 | nan | nan | 3.00 | 0% | 0% |",
        "| dense | 1 | 3 | 4.00 | 0.50 | nan | 33% | 33% |",
        "| all | 1 | 4 | 4.00 | 0.50 | 3.00 | 25% | 25% |",
        "| 3d | 2 | 1 | nan | nan | 5.00 | 0% | 0% |",
        "| all | 2 | 1 | nan | nan | 5.00 | 0% | 0% |",
    ]
    shown = tables.sections(None, None, None, {"isa": "avx2", "date": "2026-11-28T", "rows": rows})
    assert shown[0].startswith("**Layers of other networks, and random ones**, avx2 kernels, 2026-11-28")
    assert set(lines) <= set(shown)
