"""A model's state in every format that is read.

What an encoding loses is lost on purpose: `Written.state` is what the library concerned makes of
the file, computed here in plain PyTorch or by the library itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from range_server import RangeServer

State = dict[str, torch.Tensor]

# The weights that the encodings pack.
LINEAR, EXPERTS = "linear.weight", "experts"
ROWS, COLUMNS = 64, 128


class Packable(nn.Module):
    """Has a weight that any encoding takes, and experts as gpt-oss keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(COLUMNS, ROWS)
        self.experts = nn.Parameter(torch.empty(2, 64, 24))
        nn.init.normal_(self.experts)


@dataclass(frozen=True)
class Written:
    """A checkpoint: where it is, and what it has under the model's names."""

    path: str | Path
    state: State


def _folder(folder: Path, tensors: State, quantization: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return folder


def _fp8(state: State, folder: Path) -> Written:
    block = 32
    weight = (state[LINEAR] * 100).to(torch.float8_e4m3fn)
    grid = torch.arange(1, ROWS // block * (COLUMNS // block) + 1, dtype=torch.float32) / 300
    scales = grid.view(ROWS // block, COLUMNS // block)
    spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
    tensors = {**state, LINEAR: weight, f"{LINEAR}_scale_inv": scales}
    settings = {"quant_method": "fp8", "weight_block_size": [block, block]}
    decoded = weight.float() * spread
    return Written(_folder(folder / "fp8", tensors, settings), {**state, LINEAR: decoded})


_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _mxfp4(state: State, folder: Path) -> Written:
    generator = torch.Generator().manual_seed(4)
    experts, columns, rows = state[EXPERTS].shape
    blocks = torch.randint(
        0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=generator
    )
    scales = torch.randint(
        120, 130, (experts, rows, columns // 32), dtype=torch.uint8, generator=generator
    )
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    values = torch.tensor([*_FP4, *(-value for value in _FP4)])[codes]
    values = values * torch.exp2(scales.float() - 127)[..., None]
    decoded = values.flatten(-2).transpose(1, 2).contiguous()
    tensors = {name: tensor for name, tensor in state.items() if name != EXPERTS}
    tensors |= {f"{EXPERTS}_blocks": blocks, f"{EXPERTS}_scales": scales}
    path = _folder(folder / "mxfp4", tensors, {"quant_method": "mxfp4"})
    return Written(path, {**state, EXPERTS: decoded})


def _gptq(state: State, folder: Path) -> Written:
    group = 32
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (COLUMNS, ROWS), generator=generator)
    zeros = torch.randint(1, 16, (COLUMNS // group, ROWS), generator=generator)
    scales = torch.rand((COLUMNS // group, ROWS), generator=generator).half() / 100
    shifts = torch.arange(0, 32, 4)
    # The format keeps zeros less one.
    parts = {
        "qweight": (codes.view(-1, 8, ROWS) << shifts[:, None]).sum(1).to(torch.int32),
        "qzeros": ((zeros - 1).view(-1, ROWS // 8, 8) << shifts).sum(-1).to(torch.int32),
        "scales": scales,
        "g_idx": (torch.arange(COLUMNS) // group).int(),
    }
    of = parts["g_idx"].long()
    decoded = (scales[of] * (codes - zeros[of]).to(torch.int8)).t().float().contiguous()
    tensors = {name: tensor for name, tensor in state.items() if name != LINEAR}
    tensors |= {f"{LINEAR.removesuffix('weight')}{name}": part for name, part in parts.items()}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False}
    path = _folder(folder / "gptq", tensors, {**settings, "sym": False})
    return Written(path, {**state, LINEAR: decoded})


def _gguf(state: State, folder: Path) -> Written:
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "dormant")
    written = dict(state)
    for name, tensor in state.items():
        values = tensor.numpy()
        if name == LINEAR:
            kind = gguf.GGMLQuantizationType.Q8_0
            blocks = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
            decoded = numpy.array(gguf.quants.dequantize(blocks, kind))
            written[name] = torch.from_numpy(decoded)
        elif tensor.dim() == 0:  # the format has no numbers
            del written[name]
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(path, written)


class Callback:
    """A class of somebody's own, which nothing here may import."""

    def __init__(self) -> None:
        self.best = datetime.timedelta(seconds=3)


def _foreign(state: State, folder: Path) -> Written:
    path = folder / "trained.ckpt"
    hyper = argparse.Namespace(rate=0.1)
    torch.save({"state_dict": state, "callbacks": {Callback: Callback()}, "hyper": hyper}, path)
    return Written(path, state)


def _legacy(state: State, folder: Path) -> Written:
    path = folder / "old.pt"
    torch.save({"model": state, "by": Callback()}, path, _use_new_zipfile_serialization=False)
    return Written(path, state)


def _distributed(state: State, folder: Path) -> Written:
    dcp.save(dict(state), checkpoint_id=folder / "parts")
    return Written(folder / "parts", state)


def _remote(state: State, folder: Path, url: str) -> Written:
    safetensors.torch.save_file(state, folder / "remote.safetensors")
    return Written(f"{url}/remote.safetensors", state)


_WRITERS: dict[str, Callable[[State, Path], Written]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "gguf": _gguf,
    "foreign": _foreign,
    "legacy": _legacy,
    "distributed": _distributed,
}
FORMATS = (*_WRITERS, "remote")


class Formats:
    """The same state in each format, written when it is first asked for.

    A remote one is read from a server on this machine, which is closed with this.

    Args:
        folder: where to.
        state: real tensors that share nothing, those of a `Packable` among them.
    """

    def __init__(self, folder: Path, state: State) -> None:
        self._folder = folder
        self._state = state
        self._written: dict[str, Written] = {}
        self._server: RangeServer | None = None

    @property
    def server(self) -> RangeServer:
        """That of the remote one."""
        if self._server is None:
            self._server = RangeServer({})
        return self._server

    def __getitem__(self, name: str) -> Written:
        if name not in self._written:
            self._written[name] = self._write(name)
        return self._written[name]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _write(self, name: str) -> Written:
        if name != "remote":
            return _WRITERS[name](self._state, self._folder)
        written = _remote(self._state, self._folder, self.server.url)
        file = self._folder / "remote.safetensors"
        self.server.files[file.name] = file.read_bytes()
        return written


@contextlib.contextmanager
def every_format(folder: Path, state: State) -> Iterator[Formats]:
    """`Formats` in a folder."""
    formats = Formats(folder, state)
    try:
        yield formats
    finally:
        formats.close()
