"""Cold start: what `import convext` adds to `import torch`, and what the first call of a shape costs above the second.

Measured in fresh processes as CPU time, which other work on the machine only ever adds to: of several processes the
least counts, and the first that stays within the limits is enough. Threads that wait for each other do not spin there
(OMP_WAIT_POLICY), which would count as time of the call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMPORT_SECONDS, FIRST_CALL_SECONDS = 0.060, 0.002
PROCESSES = 6

PROGRAM = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import convext
found = {"import": time.process_time() - start}
needless = ("convext.analysis", "convext.tuning", "convext.viz", "matplotlib", "rich", "statistics", "torch.onnx")
found["modules"] = sorted(set(needless) & (set(sys.modules) - before))

def cost(call):
    times = []
    for _ in range(2):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return times[0] - times[1]

import convext.functional as C
x, w, v = torch.zeros(1, 32, 28, 28), torch.zeros(32, 32, 3, 3), torch.zeros(32, 1, 3, 3)
g, h = torch.zeros(1, 16, 30, 30, requires_grad=True), torch.zeros(16, 16, 3, 3, requires_grad=True)
large = torch.zeros(1, 8, 512, 512)
torch.zeros(1, requires_grad=True).sum().backward()  # torch's own first time
found["conv2d"] = cost(lambda: C.conv2d(x, w, padding=1))
found["depthwise"] = cost(lambda: C.conv2d(x, v, padding=1, groups=32))
found["pointwise"] = cost(lambda: C.conv2d(x[..., :7, :7], w[..., :1, :1]))
found["conv1d"] = cost(lambda: C.conv1d(x[..., 0], w[..., 0]))
found["conv3d"] = cost(lambda: C.conv3d(x[None, 0, :, None, :8, :8], w[:, :, None]))
found["transposed"] = cost(lambda: C.conv_transpose2d(x[..., :9, :9], w, stride=2))
found["gradient"] = cost(lambda: C.conv2d(g, h).sum().backward())
found["max_pool2d"] = cost(lambda: C.max_pool2d(x, 2))
found["avg_pool2d"] = cost(lambda: C.avg_pool2d(large, 3, 2, 1))  # an output under huge pages
print(json.dumps(found))
"""


def _measure() -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # installed, it is compiled
    environment |= {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    assert found.pop("modules") == [], "imported though nothing asked for them"
    return found


def test_the_import_and_first_calls_are_cheap() -> None:
    least: dict[str, float] = {}
    for _ in range(PROCESSES):
        least = {name: min(seconds, least.get(name, seconds)) for name, seconds in _measure().items()}
        if all(seconds < (IMPORT_SECONDS if n == "import" else FIRST_CALL_SECONDS) for n, seconds in least.items()):
            return
    pytest.fail(f"seconds of CPU time: {least}")
