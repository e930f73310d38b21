"""Build any PyTorch model without memory, then bring it to life bit-equal to eager construction.

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

from dormant._extension import cmake_prefix, load_extension

# First: everything below uses it.
load_extension()

from dormant.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from dormant.compat import LazyInitContext  # noqa: E402
from dormant.context import lazy_init  # noqa: E402
from dormant.load import load  # noqa: E402
from dormant.materialize import is_lazy, materialize  # noqa: E402
from dormant.quantize import QuantizeReport, quantize  # noqa: E402
from dormant.quantizers.bitsandbytes import FourBit, Int8  # noqa: E402
from dormant.report import Report, TensorReport  # noqa: E402
from dormant.save import save  # noqa: E402
from dormant.summary import Summary, summary  # noqa: E402

cmake_prefix_path: str = cmake_prefix()
"""Directory to put on CMAKE_PREFIX_PATH so that `find_package(dormant)` succeeds."""

__all__ = [
    "Checkpoint",
    "FourBit",
    "Int8",
    "LazyInitContext",
    "QuantizeReport",
    "Report",
    "Summary",
    "TensorReport",
    "cmake_prefix_path",
    "is_lazy",
    "lazy_init",
    "load",
    "materialize",
    "open_checkpoint",
    "quantize",
    "save",
    "summary",
]
