"""Whole networks made ready for inference: convext.optimize against other engines, verified, then timed in turns.

    python -m benchmarks.inference [--threads 1 2] [--batches 1 8] [--networks VGG-16 ...] [--no-compile]
                                   [--seconds 8] [--output FILE] [--resume] [--peers-python PYTHON]

Contenders: torch in both memory formats, torch.compile with freezing (a minute of compilation each), and ONNX Runtime,
OpenVINO and MNN, each in a process of its own with the network as an ONNX file (what is missing is named).
convext.optimize chooses its memory format by timing both, as it does for users. Every output must lie within NORM_LIMIT
of torch's, norm-wise (of the engines, the first output); MNN, whose Winograd tiles lose more, within LOOSE_LIMIT.
The file is written after every row; --resume keeps the rows that it has and goes on with the others.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convext
from benchmarks.models import FORMATS, NORM_LIMIT, SIZE, call_of, network
from benchmarks.networks import NETWORKS
from benchmarks.peers import PeerCall, Refused, Worker, installed
from benchmarks.timing import Call, Mismatch, disturbed_share, geometric_mean, take_turns
from convext import _C

ROOT = Path(__file__).resolve().parent.parent
LOOSE_LIMIT = 1e-2
BUDGET_SECONDS = 8.0
WARM_SECONDS = 0.1
"""A network is called again and again: shorter calls than this are timed when one has gone before."""
ENGINES = ("onnxruntime", "openvino", "mnn")


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else first(result[0])


def write_onnx(model: nn.Module, x: Tensor, path: Path) -> None:
    """The network for the engines. Raises ImportError where onnx or onnxscript is missing."""
    torch.onnx.export(model, (x,), str(path), input_names=["x"], output_names=["y"], dynamo=True, external_data=False)


def joined(result: Any) -> Tensor:
    """All the tensors of a result, as one line."""
    if isinstance(result, Tensor):
        return result.flatten()
    return torch.cat([joined(part) for part in (result.values() if isinstance(result, dict) else result)])


def frozen(model: nn.Module, x: Tensor) -> Call:
    from torch._inductor import config

    torch._dynamo.reset()
    call = call_of(torch.compile(model), x)  # type: ignore[arg-type]
    with config.patch(freezing=True):
        call()
    return call


def hold(name: str, result: Tensor, expected: Tensor, limit: float) -> float:
    error = float((result - expected).norm() / expected.norm()) if result.shape == expected.shape else float("inf")
    if not error <= limit:
        raise Mismatch(f"{name}: the norm-wise error is {error:.3g}, allowed is {limit:.3g}")
    return error


def ask(
    worker: Worker, spec: dict[str, Any], x: Tensor, threads: int, expected: Tensor, errors: dict[str, float]
) -> tuple[Call | None, str]:
    """An engine's call, verified, or why there is none."""
    limit = LOOSE_LIMIT if worker.name == "mnn" else NORM_LIMIT
    try:
        call = PeerCall(worker, spec, x.numpy(), None, threads)
        errors[worker.name] = hold(worker.name, call(), expected, limit)
    except (Refused, Mismatch) as why:
        return None, str(why)
    return call, ""


def measure(
    name: str,
    batch: int,
    threads: int,
    workers: Sequence[Worker],
    compiles: bool,
    folder: Path,
    budget: float | None = None,
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model, x = network(name), torch.randn(batch, 3, SIZE, SIZE)
    every = call_of(model, x)()
    expected = first(every)
    calls: dict[str, Call] = {}
    for layout, memory_format in FORMATS.items():
        laid_out = network(name).to(memory_format=memory_format)
        calls[f"torch {layout}"] = call_of(laid_out, x.contiguous(memory_format=memory_format))
    optimized = convext.optimize(model, x)
    calls["convext"] = call_of(optimized, x)
    if compiles:
        calls["torch.compile"] = frozen(network(name), x)
    errors = {
        who: hold(f"{name}, {who}", joined(call()), joined(every), NORM_LIMIT)
        for who, call in calls.items()
        if who in ("convext", "torch.compile")
    }
    missing: dict[str, str] = {}
    if workers:
        path = folder / f"{name}-{batch}.onnx".replace(" ", "-")
        try:
            if not path.exists():
                write_onnx(model, x, path)
        except ImportError as why:  # onnx or onnxscript
            missing = dict.fromkeys((worker.name for worker in workers), str(why))
        spec = {"kind": "model", "path": str(path), "output": list(expected.shape)}
        for worker in workers if not missing else []:
            call, why = ask(worker, spec, x, threads, expected, errors)
            if call is None:
                missing[worker.name] = why
            else:
                calls[worker.name] = call
    timings = take_turns(calls, BUDGET_SECONDS if budget is None else budget, random.Random(0), WARM_SECONDS)
    seconds = {who: timing.median for who, timing in timings.items()}
    others = {who: t for who, t in seconds.items() if who != "convext"}
    best = min(others, key=others.__getitem__)
    theirs = min(seconds[f"torch {layout}"] for layout in FORMATS)
    return {
        "network": name,
        "batch": batch,
        "threads": threads,
        "seconds": seconds,
        "disturbed": disturbed_share(timings),
        "errors": errors,
        "missing": missing,
        "memory_format": optimized.report.memory_format,
        "best": best,
        "ratio": others[best] / seconds["convext"],
        "ratio_torch": theirs / seconds["convext"],
    }


def line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{who} {1e3 * seconds:.1f}" for who, seconds in row["seconds"].items())
    missing = "".join(f"; {who} missing: {why}" for who, why in row["missing"].items())
    return (
        f"{row['network']}, batch {row['batch']}, {row['threads']} thread(s), ms: {times}; {row['ratio']:.2f} times as "
        f"fast as {row['best']}, {row['ratio_torch']:.2f} as torch ({row['memory_format']}){missing}"
    )


def key_of(row: dict[str, Any]) -> tuple[int, int, int]:
    """What a row is about, as rows are ordered."""
    return row["threads"], row["batch"], list(NETWORKS).index(row["network"])


def kept(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier part of the same run. Raises ValueError where the file is of something else."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    for what in ("mode", "isa", "size", "torch", "convext", "peers"):
        if content.get(what) != about[what]:
            raise ValueError(f"{path} has {what} {content.get(what)}, this run {about[what]}: it cannot go on there")
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--networks", "--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS, help="to time a row in")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the file has")
    options = parser.parse_args(arguments)
    versions = installed(options.peers_python)
    today = datetime.datetime.now(datetime.timezone.utc)
    path = options.output or ROOT / "benchmarks" / "results" / f"{today:%Y-%m-%d}-{_C.active_isa()}-inference.json"
    about = {"mode": "inference", "date": today.isoformat(timespec="seconds"), "isa": _C.active_isa(), "size": SIZE}
    about |= {"torch": torch.__version__, "convext": convext.__version__}
    about |= {"peers": {name: versions[name] for name in ENGINES}}
    rows = kept(path, about) if options.resume else []
    there = {key_of(row) for row in rows}
    workers = [Worker(name, options.peers_python) for name in ENGINES if versions[name] is not None]
    for name in ENGINES:
        if versions[name] is None:
            print(f"{name} is not installed for {options.peers_python}: left out")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for threads, batch, name in itertools.product(options.threads, options.batches, options.networks):
                if (threads, batch, list(NETWORKS).index(name)) in there:
                    continue
                row = measure(name, batch, threads, workers, options.compile, Path(folder), options.seconds)
                print(line(row), flush=True)
                rows = sorted([*rows, row], key=key_of)
                path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    finally:
        for worker in workers:
            worker.close()
    for what in ("ratio", "ratio_torch"):
        print(f"geometric mean, {what}: {geometric_mean([row[what] for row in rows]):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
