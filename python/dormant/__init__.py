"""Lazy initialization for PyTorch models: bit-identical to eager construction, at any size.

A model that is constructed inside `lazy_init` takes no memory. `materialize`, `load` and `quantize`
then make each tensor once, directly in its final form.

Example:
    >>> import torch, dormant
    >>> with dormant.lazy_init():
    ...     layer = torch.nn.Linear(1024, 1024)
    >>> dormant.is_lazy(layer)
    True
    >>> report = dormant.materialize(layer)
    >>> dormant.is_lazy(layer), report.lazy_rate
    (False, 1.0)
"""

# ruff: noqa: F401  some modules are imported because they replace functions
from dormant import integrations as integrations
from dormant import recipes as recipes
from dormant import tensor_parallel as tensor_parallel
from dormant._extension import _C, cmake_prefix
from dormant.checkpoint import accelerate_ties, reading
from dormant.checkpoint.api import Checkpoint, open_checkpoint
from dormant.checkpoint.entry import Entry
from dormant.checkpoint.verification import Verification
from dormant.integrations.colossalai import LazyInitContext
from dormant.loading import diffusers_construction, torch_init_guard, transformers_construction
from dormant.loading.api import load
from dormant.loading.plan import LoadPlan, PlannedTensor
from dormant.materialization.api import is_lazy, materialize
from dormant.quantization.api import quantize
from dormant.quantization.four_bit import FourBit
from dormant.quantization.int8 import Int8
from dormant.quantization.report import QuantizedLayer, QuantizeReport
from dormant.recipes import load_recipe, save_recipe
from dormant.recording import (
    constructors,
    dtensor_copies,
    dtensor_operators,
    duplicate,
    pointer_reads,
    torch_save,
    truncated_normal,
)
from dormant.recording.context import lazy_init
from dormant.reporting.memory import MemorySample
from dormant.reporting.report import Report, TensorReport
from dormant.reporting.summaries import Summary, TensorSummary, summary
from dormant.saving.api import save

__version__: str = _C.version
"""The release of this package."""

cmake_prefix_path: str = cmake_prefix()
"""The directory to put on CMAKE_PREFIX_PATH so that `find_package(dormant)` succeeds."""

__all__ = [
    "Checkpoint",
    "Entry",
    "FourBit",
    "Int8",
    "LazyInitContext",
    "LoadPlan",
    "MemorySample",
    "PlannedTensor",
    "QuantizeReport",
    "QuantizedLayer",
    "Report",
    "Summary",
    "TensorReport",
    "TensorSummary",
    "Verification",
    "__version__",
    "cmake_prefix_path",
    "is_lazy",
    "lazy_init",
    "load",
    "load_recipe",
    "materialize",
    "open_checkpoint",
    "quantize",
    "save",
    "save_recipe",
    "summary",
]
