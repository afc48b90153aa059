"""Triton's kernels do what torch's multi-tensor operations do, in its interpreter, and are compiled for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="torch comes without Triton here")

# in a process of its own, because Triton looks at the variable when it is imported
PROGRAM = """
import torch
from torch import nn
from rts_hf import RTSPUGD
from rts_hf.optim import optimizer as module
from rts_hf.optim.kernels import Lists, works_on

assert works_on(torch.device("cpu"))

launches = []
launch = Lists._launch
Lists._launch = lambda self, kernel, *rest, **constants: (
    launches.append(kernel.__name__), launch(self, kernel, *rest, **constants))

def train(devices, method, dtype=torch.float32, relay=False, **settings):
    module._KERNEL_DEVICES = devices
    torch.manual_seed(0)
    # a tensor of several chunks whose end is no whole block, one without gaps in another order, a scalar
    net = nn.Sequential(nn.Conv2d(3, 600, 3), nn.PReLU(), nn.Flatten(), nn.LazyLinear(3, bias=False))
    net(torch.zeros(1, 3, 5, 5))
    net = net.to(dtype).to(memory_format=torch.channels_last)
    optimizer = RTSPUGD(net.parameters(), 1e-4, method=method, switch=None, perturb_every=1, total_steps=5, **settings)
    told = []
    for step in range(3):
        x = torch.randn(4, 3, 5, 5, dtype=dtype)
        net(x).square().mean().backward()
        if relay:  # the first gradient in another order than its weights
            net[0].weight.grad = net[0].weight.grad.contiguous()
        before = [param.detach().clone() for param in net.parameters()]
        with optimizer.perturbed():
            if step == 1:
                told += [param.detach().clone() for param in net.parameters()]
                told += [param.grad.clone() for param in net.parameters()]
            net(x).square().mean().backward()
        assert all(map(torch.equal, before, net.parameters()))
        optimizer.step()
        told += [torch.tensor([optimizer.stats()["epsilon_norm"], optimizer.stats()["gradient_norm"]])]
        optimizer.zero_grad()
    return told + [param.detach() for param in net.parameters()]

def assert_close(left, right):
    for a, b in zip(left, right, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm(), (a, b)

for method in ("pugd", "sam", "asam"):
    for settings in ({}, {"scale": "constant", "scale_beta_max": 0.0}, {"scale": "constant"}, {"capturable": True}):
        launches.clear()
        assert_close(train({"cpu"}, method, **settings), train(set(), method, **settings))
        assert launches == ["_save_and_measure", "_perturb"] * 3, launches
module._KERNEL_DEVICES = {"cpu"}
weight = nn.Parameter(torch.ones(3))
optimizer = RTSPUGD([weight], 0.1, switch=None, total_steps=5)
loss = weight.prod()
loss.backward(retain_graph=True)
with optimizer.perturbed():
    try:  # at other weights than those that it was made at
        loss.backward()
    except RuntimeError as error:
        assert "inplace" in str(error)
    else:
        raise AssertionError("autograd did not see that the weights have moved")

launches.clear()  # the kernels are for float32 alone, and walk through memory
for settings in ({"dtype": torch.float64}, {"relay": True}):
    assert_close(train({"cpu"}, "pugd", **settings), train(set(), "pugd", **settings))
    assert not launches
"""


def test_the_kernels_do_what_torchs_operations_do() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scale", ["fp32", "*fp32"])
def test_the_kernels_compile_for_a_gpu(scale: str) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from rts_hf.optim import kernels

    lists = {"table": "*i64", "count": "i32", "sizes": "*i64", "owners": "*i64", "starts": "*i64"}
    chunks = {"CHUNK": kernels._CHUNK, "BLOCK": kernels._BLOCK}
    for kernel, arguments, constants in (
        (kernels._save_and_measure, {"squares": "*fp32"}, {"MEASURED": True}),
        (
            kernels._perturb,
            {"factor": "*fp32", "scale": scale, "squares": "*fp32"},
            {"POWER": 2, "MEASURED": True, "SCALED": "by a tensor" if scale == "*fp32" else "by a number"},
        ),
    ):
        signature = {**lists, **arguments, **dict.fromkeys({**constants, **chunks}, "constexpr")}
        made = compile(ASTSource(kernel, signature, {**constants, **chunks}), GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]
