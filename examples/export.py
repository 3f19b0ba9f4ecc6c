"""A model that leaves Python: python -m examples.export

torch.export writes a model down as a graph of operators. Convext's are there by name, so whoever loads the program
needs the library with the operators, not convext's Python. ONNX writes it in the operators of a standard: any runtime
takes it, which has kernels of its own; numbers then agree as far as two orders of a sum do. Here the weights and the
picture hold whole numbers, so they agree exactly.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import convext
from examples import pictures


@dataclass(frozen=True)
class Exported:
    operators: list[str]
    """What the exported program calls of convext's."""
    equal: bool
    """The saved and loaded program, and convext."""
    onnx: dict[str, int]
    """ONNX's operators and how often each is there; empty where its packages are missing."""
    onnx_equal: bool | None
    """ONNX Runtime, and convext; None where it is missing."""


def model() -> nn.Module:
    net = nn.Sequential(
        convext.Conv2d(1, 4, 3, stride=2, padding="same", padding_mode="symmetric"),
        nn.ReLU(),
        convext.MaxPool2d(3, 2, ceil_mode=True),
        convext.Conv2d(4, 2, 3, padding=((1, 1), (2, 0)), flip_kernel=True),
        convext.AdaptiveMaxPool2d((5, 7)),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randint(-2, 3, p.shape, generator=generator))
    return net.eval()


def main() -> Exported:
    net = model()
    image = pictures.grey(pictures.photograph()).float()[..., ::4, ::4].contiguous()
    expected = net(image).detach()
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(torch.export.export(net, (image,)), Path(folder) / "net.pt2")
        program = torch.export.load(Path(folder) / "net.pt2")
    calls = [str(node.target) for node in program.graph.nodes if "convext" in str(node.target)]
    equal = torch.equal(program.module()(image).detach(), expected)
    print(f"torch.export: {', '.join(calls)}; loaded again it says the same: {equal}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            written = convext.export_onnx(net, (image,))
        import onnxruntime
    except ImportError as error:
        print(error)
        return Exported(calls, equal, {}, None)
    counts = dict(Counter(node.op_type for node in written.model_proto.graph.node))
    session = onnxruntime.InferenceSession(written.model_proto.SerializeToString())
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    onnx_equal = torch.equal(torch.from_numpy(output), expected)
    print(f"ONNX: {counts}; ONNX Runtime says the same: {onnx_equal}")
    return Exported(calls, equal, counts, onnx_equal)


if __name__ == "__main__":
    main()
