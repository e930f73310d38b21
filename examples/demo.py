"""Builds a Llama of 1.1 billion parameters lazily, brings it to life, and compares it with eager.

Each way runs in a process of its own, so that the peaks of memory are its own. The values are
compared by a SHA-256 of every tensor; the program exits with 1 if any of them differs.

    python examples/demo.py [--layers 22] [--threads N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

SEED = 0
T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22, help="22 make 1.1 billion parameters")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--run", choices=("lazy", "eager"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.layers, options.threads)
        return 0

    console = Console()
    console.print("[bold]1. Lazily[/], in a process of its own")
    lazy = watch(console, "lazy", options)
    console.print("[bold]2. Eagerly[/], in another process, under the same seed")
    eager = watch(console, "eager", options)
    console.print("[bold]3. Side by side[/]")
    console.print(results_table(lazy, eager))
    differences = compare(lazy, eager)
    for line in differences[:10]:
        console.print(f"[red]{line}[/]", highlight=False)
    if differences:
        console.print(f"[bold red]{len(differences)} differences from eager construction[/]")
        return 1
    console.print(
        f"[green]All {len(eager['digests'])} tensors have the bits of eager construction[/] "
        "(SHA-256 of each, with its name, shape, strides and dtype), and the random generator is "
        "in the same state."
    )
    return 0


def watch(console: Console, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one way in a child process and prints its steps; returns what it measured."""
    command = [sys.executable, __file__, "--run", way, "--layers", str(options.layers)]
    if options.threads:
        command += ["--threads", str(options.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            message = json.loads(line)
            if "result" in message:
                return message["result"]  # type: ignore[no-any-return]
            console.print(f"   {message['step']}", highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(f"demo: the {way} process ended with {child.returncode} and without a result")


# ---- in the child processes


def run(way: str, layers: int, threads: int | None) -> None:
    """Builds the model one way, and prints steps and measurements as lines of JSON."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import dormant
    from dormant.memory import resident_bytes
    from dormant.table import format_bytes

    if threads:
        torch.set_num_threads(threads)
    # The first model of a process pays for imports, whichever way it is built.
    tiny = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    with dormant.lazy_init():
        LlamaForCausalLM(tiny)
    LlamaForCausalLM(tiny)

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    say(f"Python, PyTorch and transformers are loaded: {format_bytes(resident_bytes() or 0)}.")
    torch.manual_seed(SEED)
    before = resident_bytes() or 0

    def build() -> torch.nn.Module:
        return LlamaForCausalLM(config)

    if way == "lazy":
        with dormant.lazy_init():
            model, building = timed(build)
    else:
        model, building = timed(build)
    grown = (resident_bytes() or 0) - before
    state = torch.get_rng_state()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"LlamaForCausalLM with {parameters / 1e9:.2f} billion parameters built in "
        f"{building * 1e3:.0f} ms; memory grew by {format_bytes(grown)}."
    )
    materializing = 0.0
    if way == "lazy":
        if not dormant.is_lazy(model):
            raise SystemExit("demo: the model is not lazy")
        report, materializing = timed(lambda: dormant.materialize(model))
        say(f"dormant.materialize(model): {materializing:.1f} s. Its report:")
        for line in str(report).splitlines():
            say(f"   {line}")
    peak = highest_bytes() - before
    say(f"Now hashing {format_bytes(sum(p.nbytes for p in model.parameters()))} of values.")
    result = {
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "building": building,
        "grown": grown,
        "materializing": materializing,
        "peak": peak,
        "digests": {name: digest(tensor) for name, tensor in named_tensors(model).items()},
        "generator": hashlib.sha256(state.numpy().tobytes()).hexdigest(),
    }
    print(json.dumps({"result": result}), flush=True)


def say(step: str) -> None:
    print(json.dumps({"step": step}), flush=True)


def timed(action: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started


def highest_bytes() -> int:
    from dormant.memory import highest_resident_bytes

    return highest_resident_bytes() or 0


def named_tensors(model: Any) -> dict[str, Any]:
    """Parameters and buffers under every name they have, ties included."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def digest(tensor: Any) -> str:
    """Everything about a tensor that may not differ: geometry, dtype and every bit."""
    import torch

    geometry = f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.requires_grad}"
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return f"{geometry} {hashlib.sha256(flat.numpy()).hexdigest()}"


# ---- what came out


def compare(lazy: dict[str, Any], eager: dict[str, Any]) -> list[str]:
    """One line for each difference."""
    differences = []
    if list(lazy["digests"]) != list(eager["digests"]):
        differences.append("the names of the tensors differ, or their order")
    for name, expected in eager["digests"].items():
        got = lazy["digests"].get(name, "nothing")
        if got != expected:
            differences.append(f"{name}: eager {expected}, lazy {got}")
    if lazy["generator"] != eager["generator"]:
        differences.append("the state of the random generator differs after construction")
    return differences


def results_table(lazy: dict[str, Any], eager: dict[str, Any]) -> Table:
    from dormant.table import format_bytes

    table = Table(
        caption=f"{eager['parameters'] / 1e9:.2f} billion float32 parameters, "
        f"{eager['threads']} thread(s), one run of each; memory is growth of the process"
    )
    table.add_column("")
    table.add_column("eager", justify="right")
    table.add_column("dormant", justify="right")
    table.add_row(
        "build the model", f"{eager['building']:.2f} s", f"[bold]{lazy['building']:.3f} s[/]"
    )
    table.add_row(
        "memory it takes then", format_bytes(eager["grown"]), f"[bold]{format_bytes(lazy['grown'])}"
    )
    table.add_row("materialize", "-", f"{lazy['materializing']:.2f} s")
    table.add_row(
        "until all values are there",
        f"{eager['building']:.2f} s",
        f"{lazy['building'] + lazy['materializing']:.2f} s",
    )
    table.add_row("peak memory", format_bytes(eager["peak"]), format_bytes(lazy["peak"]))
    return table


if __name__ == "__main__":
    sys.exit(main())
