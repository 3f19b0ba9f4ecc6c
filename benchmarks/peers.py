"""Other runtimes, each in a process of its own: ONNX Runtime, OpenVINO, ncnn, MNN, where they are installed.

They run forward passes only, on contiguous arrays. A worker (``python -m benchmarks.peers NAME``, which must not import
torch: OpenVINO crashes beside it) reads pickled requests from its standard input and answers on its standard output:

    ("prepare", spec, input, weight or None, threads) -> ("ready", None), or ("refused", why)
    ("result",)                                       -> ("result", array)
    ("seconds", repeats)                              -> ("seconds", seconds per call)

so a peer takes its turns among the others and measures itself. A runtime that does not support a problem, or fails at
it, refuses; what it computes is checked like everyone's.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = {
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "mnn": ("MNN", "onnx"),
}
"""Name -> the packages that its worker imports."""

ROOT = Path(__file__).resolve().parent.parent

SETTLE_SECONDS = 0.01
"""Waited before a peer's turn: threads of other processes spin for a while after their work."""


class Refused(Exception):
    """This runtime cannot do this problem."""


# The worker's side -------------------------------------------------------------------------------------------------
# spec: kind ("conv", "transposed", "max", "avg"), kernel, stride, before, after, dilation, groups, ceil_mode,
# count_include_pad, and output, the shape. kind "model": a whole network, in the ONNX file spec["path"], whose first
# result counts. Each function returns a call that computes the result; it may borrow the memory of x and w.


def _onnx_model(spec: dict[str, Any], x: Any, w: Any) -> bytes:
    """The layer as an ONNX model with input x, output y."""
    from onnx import TensorProto, helper, numpy_helper

    window = {"kernel_shape": spec["kernel"], "strides": spec["stride"], "pads": spec["before"] + spec["after"]}
    if w is not None:
        kind = "Conv" if spec["kind"] == "conv" else "ConvTranspose"
        node = helper.make_node(kind, ["x", "w"], ["y"], dilations=spec["dilation"], group=spec["groups"], **window)
    elif spec["kind"] == "max":
        node = helper.make_node("MaxPool", ["x"], ["y"], ceil_mode=int(spec["ceil_mode"]), **window)
    else:
        include = {"ceil_mode": int(spec["ceil_mode"]), "count_include_pad": int(spec["count_include_pad"])}
        node = helper.make_node("AveragePool", ["x"], ["y"], **include, **window)
    source = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, spec["output"])]
    graph = helper.make_graph([node], "layer", source, result, [] if w is None else [numpy_helper.from_array(w, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()  # type: ignore[no-any-return]


def _onnxruntime(spec: dict[str, Any], x: Any, w: Any, threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = spec["path"] if spec["kind"] == "model" else _onnx_model(spec, x, w)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    return lambda: session.run(None, {source: x})[0]


def _openvino_layer(spec: dict[str, Any], x: Any, w: Any) -> Any:
    import openvino
    from openvino import opset13 as ops

    stride, before, after = spec["stride"], spec["before"], spec["after"]
    parameter = ops.parameter(x.shape, openvino.Type.f32)
    if spec["kind"] == "conv" and spec["groups"] == 1:
        node = ops.convolution(parameter, ops.constant(w), stride, before, after, spec["dilation"])
    elif spec["kind"] == "conv":
        grouped = w.reshape(spec["groups"], w.shape[0] // spec["groups"], *w.shape[1:])
        node = ops.group_convolution(parameter, ops.constant(grouped), stride, before, after, spec["dilation"])
    elif spec["kind"] == "transposed" and spec["groups"] == 1:
        pads = {"pads_begin": before, "pads_end": after, "dilations": spec["dilation"]}
        node = ops.convolution_backprop_data(parameter, ops.constant(w), stride, **pads)
    elif spec["kind"] == "transposed":
        raise Refused("transposed convolutions of one group only")
    else:
        rounding = "ceil" if spec["ceil_mode"] else "floor"
        if spec["kind"] == "max":
            node = ops.max_pool(parameter, stride, [1] * len(stride), before, after, spec["kernel"], rounding).output(0)
        else:
            exclude = not spec["count_include_pad"]
            node = ops.avg_pool(parameter, stride, before, after, spec["kernel"], exclude, rounding)
    return openvino.Model([node], [parameter])


def _openvino(spec: dict[str, Any], x: Any, w: Any, threads: int) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    model = core.read_model(spec["path"]) if spec["kind"] == "model" else _openvino_layer(spec, x, w)
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return call


# The numbers of ncnn's settings, per dimension, the innermost first.
_NCNN_CONV = {"kernel": (1, 11, 21), "dilation": (2, 12, 22), "stride": (3, 13, 23)}
_NCNN_CONV |= {"before": (4, 14, 24), "after": (15, 16, 17)}
_NCNN_POOL = {"kernel": (1, 11, 21), "stride": (2, 12, 22), "before": (3, 13, 23), "after": (14, 15, 16)}


def _ncnn(spec: dict[str, Any], x: Any, w: Any, threads: int) -> Callable[[], Any]:
    import ncnn

    if spec["kind"] == "model":
        raise Refused("reads no ONNX files")
    if x.shape[0] != 1:
        raise Refused("one image only")
    dimensions = ("1D", "", "3D")[len(spec["kernel"]) - 1]
    if spec["kind"] == "transposed":
        if spec["groups"] > 1:
            raise Refused("transposed convolutions of one group only")
        kind, w = "Deconvolution", w.swapaxes(0, 1)  # its weights are [output channel][input channel]
    elif w is not None:
        kind = "Convolution" if spec["groups"] == 1 else "ConvolutionDepthWise"
    else:
        kind = "Pooling"
    if w is None:
        numbers = _NCNN_POOL
        settings = f"0={int(spec['kind'] == 'avg')} 5={int(not spec['ceil_mode'])} 6={int(spec['count_include_pad'])}"
    else:
        numbers = _NCNN_CONV
        settings = f"0={w.shape[0]} 5=0 6={w.size} 7={spec['groups']}"
    for name, places in numbers.items():
        settings += "".join(f" {place}={value}" for place, value in zip(places, reversed(spec[name]), strict=False))
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    _ncnn_load(net, f"7767517\n2 2\nInput x 0 1 x\n{kind}{dimensions} layer 1 1 x y {settings}\n", w)
    source = ncnn.Mat(x[0])

    def call() -> Any:
        extractor = net.create_extractor()
        extractor.input("x", source)
        return extractor.extract("y")[1]

    return call


def _ncnn_load(net: Any, text: str, w: Any) -> None:
    """ncnn reads a network from two files: the text, and the weights, each after a word of flags."""
    with tempfile.TemporaryDirectory() as folder:
        param, data = Path(folder) / "layer.param", Path(folder) / "layer.bin"
        param.write_text(text)
        data.write_bytes(b"" if w is None else bytes(4) + w.tobytes())
        if net.load_param(str(param)) or net.load_model(str(data)):
            raise Refused("the network does not load")


def _mnn(spec: dict[str, Any], x: Any, w: Any, threads: int) -> Callable[[], Any]:
    import _tools  # MNN's converter itself: its script mnnconvert installs packages and reports to a server
    import MNN

    with tempfile.TemporaryDirectory() as folder:
        onnx, own = Path(folder) / "layer.onnx", Path(folder) / "layer.mnn"
        if spec["kind"] == "model":
            onnx = Path(spec["path"])
        else:
            onnx.write_bytes(_onnx_model(spec, x, w))
        files = ["--modelFile", str(onnx), "--MNNModel", str(own)]
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--bizCode", "layer", *files])
        if not own.exists():
            raise Refused("the network does not convert")
        interpreter = MNN.Interpreter(str(own))
    session = interpreter.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    inputs = interpreter.getSessionInput(session)
    host = MNN.Tensor(tuple(x.shape), MNN.Halide_Type_Float, x, MNN.Tensor_DimensionType_Caffe)

    def call() -> Any:
        inputs.copyFrom(host)  # a run may overwrite its input
        interpreter.runSession(session)
        return interpreter.getSessionOutput(session)

    return call


_WORKERS = {"onnxruntime": _onnxruntime, "openvino": _openvino, "ncnn": _ncnn, "mnn": _mnn}


def _result(value: Any, dimensions: int) -> Any:
    """What a call returned, as a numpy array of its own."""
    import numpy

    if type(value).__module__.startswith("ncnn"):
        return numpy.array(value)[None]  # it has no batch
    if isinstance(value, numpy.ndarray):
        return numpy.ascontiguousarray(value)
    import MNN

    shape = value.getShape()
    host = MNN.Tensor(shape, MNN.Halide_Type_Float, numpy.zeros(shape, "float32"), MNN.Tensor_DimensionType_Caffe)
    value.copyToHostTensor(host)
    if set(shape[dimensions:]) == {1}:  # its convolutions have two dimensions at least
        shape = shape[:dimensions]
    return host.getNumpyData().reshape(shape).copy()


def _serve(name: str) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints must not mix with the answers
    call: Callable[[], Any] | None = None
    borrowed: Any = None
    while True:
        try:
            what, *rest = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Any
            if what == "prepare":
                call = None
                borrowed = rest
                call = _WORKERS[name](*borrowed)
                expected = list(borrowed[0]["output"])
                shape = list(_result(call(), len(expected)).shape)
                if shape != expected:  # one that rounds sizes in another way
                    raise Refused(f"its result has shape {shape}, not {expected}")
                answer = ("ready", None)
            elif call is None:
                raise Refused("nothing is prepared")
            elif what == "result":
                answer = ("result", _result(call(), borrowed[1].ndim))
            else:
                start = time.perf_counter()
                for _ in range(rest[0]):
                    call()
                answer = ("seconds", (time.perf_counter() - start) / rest[0])
        except Exception as error:  # whatever a runtime raises is its refusal
            call, answer = None, ("refused", str(error) or type(error).__name__)
        pickle.dump(answer, answers)
        answers.flush()


# The benchmark's side ----------------------------------------------------------------------------------------------


def installed(python: str = sys.executable) -> dict[str, str | None]:
    """Peer -> version, or None where the interpreter ``python`` lacks one of its packages."""
    question = """
import importlib.metadata, importlib.util, json, sys
def version(package):
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else None
peers = {name: [version(p) for p in packages] for name, packages in json.loads(sys.argv[1]).items()}
print(json.dumps({name: versions[0] if all(versions) else None for name, versions in peers.items()}))
"""
    answer = subprocess.run([python, "-c", question, json.dumps(PEERS)], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


class Worker:
    """A running peer. One problem is prepared at a time."""

    def __init__(self, name: str, python: str = sys.executable) -> None:
        self.name, self._python = name, python
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *request: Any) -> Any:
        """The worker's answer. Raises Refused; a worker that died is started anew by the next request."""
        if self._process is None:
            command = [self._python, "-m", "benchmarks.peers", self.name]
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, cwd=ROOT
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            kind, value = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            status = self._process.wait()
            self._process = None
            raise Refused(f"its process ended with status {status}") from error
        if kind == "refused":
            raise Refused(value)
        return value

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None


class PeerCall:
    """What a worker has prepared, in the form of the benchmark's calls."""

    def __init__(self, worker: Worker, spec: dict[str, Any], x: Any, w: Any, threads: int) -> None:
        self._worker = worker
        worker.ask("prepare", spec, x, w, threads)

    def __call__(self) -> Any:
        torch = importlib.import_module("torch")
        return torch.from_numpy(self._worker.ask("result"))

    def seconds(self, repeats: int) -> float:
        time.sleep(SETTLE_SECONDS)
        return float(self._worker.ask("seconds", repeats))


if __name__ == "__main__":
    _serve(sys.argv[1])
