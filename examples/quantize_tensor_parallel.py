"""A multimodal LLaMA: built lazily, quantized to 4 bits, loaded from 4 tensor-parallel files.

The model has LoRA adapters, which start from zero, and a vision encoder, which is materialized
inside the lazy context. The checkpoint is a set of four files, like LLaMA's, and contains neither.
It is loaded into one rank, then into two ranks, each of which takes its own part of every
layer. Neither the model nor any of its layers ever exists in full precision.

Each rank then does the same eagerly: it builds the model, joins and cuts the files with torch, and
quantizes layer by layer with bitsandbytes. The program compares weights and outputs bit for bit and
exits with status 1 if any of them differ.

    python examples/quantize_tensor_parallel.py [--features 512] [--layers 4]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F

import dormant
from dormant import tensor_parallel

PARTS = 4
SEED = 1
VOCABULARY = 512
KEPT = [".*lora.*", "vision", "output"]


# --- the model, with the layers of fairscale ---


class ColumnParallelLinear(nn.Module):
    """Holds the rows of one rank. LoRA adds two small layers, the second of which is zero."""

    def __init__(self, inputs: int, outputs: int, *, gather: bool = False, rank: int = 8) -> None:
        super().__init__()
        self.gather_output = gather
        self.output_size_per_partition = outputs // world_size()
        self.weight = nn.Parameter(torch.empty(self.output_size_per_partition, inputs))
        nn.init.xavier_normal_(self.weight)
        self.lora_a = nn.Linear(inputs, rank, bias=False)
        self.lora_b = nn.Linear(rank, self.output_size_per_partition, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x) + self.lora_b(self.lora_a(x))
        return gathered(y) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """Holds the columns of one rank; the products of all ranks are added."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.input_is_parallel = True
        self.input_size_per_partition = inputs // world_size()
        self.weight = nn.Parameter(torch.empty(outputs, self.input_size_per_partition))
        nn.init.xavier_normal_(self.weight)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x)
        if world_size() > 1:
            dist.all_reduce(y)
        return y


class ParallelEmbedding(nn.Module):
    """Holds the features of one rank."""

    def __init__(self, entries: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, features // world_size()))
        nn.init.xavier_normal_(self.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return gathered(F.embedding(tokens, self.weight))


class Attention(nn.Module):
    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads // world_size()
        self.wq = ColumnParallelLinear(features, features)
        self.wk = ColumnParallelLinear(features, features)
        self.wv = ColumnParallelLinear(features, features)
        self.wo = RowParallelLinear(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.wq, self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.w1 = ColumnParallelLinear(features, 2 * features)
        self.w2 = RowParallelLinear(2 * features, features)
        self.w3 = ColumnParallelLinear(features, 2 * features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(features, heads)
        self.feed_forward = FeedForward(features)
        self.attention_norm = nn.RMSNorm(features)
        self.ffn_norm = nn.RMSNorm(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class MultimodalLlama(nn.Module):
    def __init__(self, features: int, layers: int) -> None:
        super().__init__()
        self.vision = nn.Sequential(
            nn.Conv2d(3, 32, 8, 8), nn.GELU(), nn.Flatten(2), nn.Linear(16, features)
        )
        # Other code uses the encoder at once, so inside the context it is made real.
        dormant.materialize(self.vision)
        self.tok_embeddings = ParallelEmbedding(VOCABULARY, features)
        self.layers = nn.ModuleList(Block(features, heads=8) for _ in range(layers))
        self.norm = nn.RMSNorm(features)
        self.output = ColumnParallelLinear(features, VOCABULARY, gather=True)

    def forward(self, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.vision(image), self.tok_embeddings(tokens)], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(part: torch.Tensor) -> torch.Tensor:
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, dim=-1)


# --- the two ways ---


def lazy_way(folder: Path, rank: int, features: int, layers: int) -> nn.Module:
    torch.manual_seed(SEED)
    with dormant.lazy_init():
        model = MultimodalLlama(features, layers)
    dormant.quantize(model, "nf4", skip=KEPT)
    parts = [dormant.open_checkpoint(path) for path in sorted(folder.glob("consolidated.*.pth"))]
    report = dormant.load(model, tensor_parallel.reshard(parts, world_size())[rank])
    missing = {name.split(".")[0] for name in report.missing_keys if "lora" not in name}
    assert missing == {"vision"}, missing
    return model


def eager_way(folder: Path, rank: int, features: int, layers: int) -> nn.Module:
    torch.manual_seed(SEED)
    model = MultimodalLlama(features, layers)
    parts = [torch.load(path) for path in sorted(folder.glob("consolidated.*.pth"))]
    state = {}
    for name, first in parts[0].items():
        dim = divided_dimension(name)
        whole = first if dim is None else torch.cat([part[name] for part in parts], dim)
        state[name] = whole if dim is None else whole.chunk(world_size(), dim)[rank]
    model.load_state_dict(state, strict=False)
    for name, module in model.named_modules():
        if isinstance(module, (ColumnParallelLinear, RowParallelLinear)) and name != "output":
            rows, columns = module.weight.shape
            linear = bitsandbytes.nn.LinearNF4(columns, rows, bias=False)
            linear.load_state_dict({"weight": module.weight.data})
            del module.weight
            module.quantized = linear.to("cpu")
            # This replaces the method, and multiplies with the quantized weight.
            object.__setattr__(module, "product", module.quantized)
    return model


def divided_dimension(name: str) -> int | None:
    if "norm" in name:
        return None
    return 1 if name.endswith(("tok_embeddings.weight", "wo.weight", "w2.weight")) else 0


def run_rank(rank: int, world: int, folder: Path, features: int, layers: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        address = f"file://{folder}/rendezvous{world}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    lazy = lazy_way(folder, rank, features, layers)
    eager = eager_way(folder, rank, features, layers)

    mine = {name: tensor.clone() for name, tensor in lazy.state_dict().items()}
    theirs = {name.replace("quantized.", ""): t.clone() for name, t in eager.state_dict().items()}
    different = [name for name in theirs if not torch.equal(mine[name], theirs[name])]
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCABULARY, (2, 12), generator=generator)
    image = torch.rand(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        outputs = lazy.eval()(tokens, image), eager.eval()(tokens, image)
    same = mine.keys() == theirs.keys() and not different and torch.equal(*outputs)
    if world > 1:
        dist.destroy_process_group()
    nbytes = sum(tensor.nbytes for tensor in mine.values())
    # To a file, because two processes could print into one line.
    (folder / f"rank{rank}of{world}.txt").write_text(
        f"rank {rank} of {world}: {len(mine)} tensors, {nbytes / 1e6:.1f} MB, and the output "
        + ("have the bits of the eager way" if same else f"DIFFER from the eager way: {different}")
    )
    if not same:
        sys.exit(1)


def write_checkpoint(folder: Path, features: int, layers: int) -> None:
    """Four files, as four ranks would have saved them; no adapters and no vision encoder."""
    torch.manual_seed(SEED + 1)
    state = MultimodalLlama(features, layers).state_dict()
    for rank in range(PARTS):
        part: dict[str, Any] = {}
        for name, tensor in state.items():
            if "lora" not in name and "vision" not in name:
                dim = divided_dimension(name)
                part[name] = tensor if dim is None else tensor.chunk(PARTS, dim)[rank].clone()
        torch.save(part, folder / f"consolidated.{rank:02}.pth")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=512, help="a multiple of 256")
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, options.features, options.layers)
        for world in (1, 2):
            arguments = (world, folder, options.features, options.layers)
            try:
                torch.multiprocessing.spawn(run_rank, arguments, nprocs=world)
            except torch.multiprocessing.ProcessExitedException:
                failed = True
            else:
                failed = False
            for path in sorted(folder.glob(f"rank*of{world}.txt")):
                print(path.read_text())
            if failed:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
