"""A network with masks under torch.compile."""

import subprocess
import sys

import pytest
import torch

# In a process without the type checks of the test suite, which torch.compile cannot trace.
COMPILE = """
import sys
import torch
from torch import nn
from k24lab.core.convert import convert
from k24lab.core.modules import anneal, drawn_masks

device, backend = sys.argv[1:]
torch.set_num_threads(1)
team = convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), 3).to(device)
x = torch.randn(3, 5, 8, device=device)
compiled = torch.compile(team, backend=backend, fullgraph=True)
for progress in (0.0, 0.5, 0.9):
    anneal(team, progress)
    results = []
    with drawn_masks(team):
        for network in (compiled, team):
            y = network(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(team.parameters()), retain_graph=True)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
assert compiled(x).shape == y.shape  # draws of its own
torch.testing.assert_close(compiled.eval()(x), team.eval()(x), rtol=1e-3, atol=1e-3)
"""


@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "eager"), pytest.param("cuda", "inductor", marks=pytest.mark.gpu)]
)
def test_compiled_networks_compute_the_same_in_one_graph_at_every_temperature(device, backend):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    done = subprocess.run([sys.executable, "-c", COMPILE, device, backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
