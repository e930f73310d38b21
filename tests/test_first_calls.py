"""What the first call of an operator costs: Meta kernels in Python may import sympy or more."""

import subprocess
import sys

CALLS = """
torch.randperm(1000)
torch.eye(100)
torch.linspace(0, 1, 50)
torch.logspace(0, 1, 50)
torch.hann_window(100)
torch.full((5,), 3.0).pow(-0.5)
torch.randint(10, (4,))
torch.nn.init.trunc_normal_(torch.empty(300, 300))
torch.nn.init.eye_(torch.empty(300, 300))
torch.nn.Transformer.generate_square_subsequent_mask(300)
1.0 / 10000 ** (torch.arange(0, 128, 2).float() / 128)
x.round() + x.abs() - x.sign()
x.clamp(0, 1) * x.square()
torch.where(x > 0, x, 0.0)
x.masked_fill_(x > 0, 0)
x.__setitem__(0, 0.0)
x.tril() + x.triu_()
x.cumsum(0)
x.sum(0) + x.mean() + x.std() + x.norm(dim=1) + x.amax(0)
x @ x
torch.outer(x[0], x[1]) @ x[0]
x.repeat(2, 1).flip(0)
torch.nn.functional.softmax(x, -1)
torch.complex(x, x)
""".strip().splitlines()

PROGRAM = """
import os, sys
import dormant, torch

slow = {"sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes"}
with dormant.lazy_init():
    x = torch.randn(300, 300)
for call in sys.stdin.read().splitlines():
    sys.stdout.flush()
    child = os.fork()
    if child == 0:  # nothing that another call has imported
        with dormant.lazy_init():
            exec(call)
        imported = slow & set(sys.modules)
        print(call, "imports" if imported else "is quick", *sorted(imported), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_first_call_imports_nothing_that_takes_long() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        input="\n".join(CALLS),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{call} is quick" for call in CALLS], done.stderr
