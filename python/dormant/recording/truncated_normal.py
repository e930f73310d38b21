"""Records `nn.init.trunc_normal_`, which reads the values that it drew.

Since torch 2.12, it draws normal numbers until all are within the bounds, and reads the values to
check this. A draw cannot be arbitrarily far from the mean, because it comes from a uniform number
with a smallest step. If both bounds are beyond the farthest draw, one round is always enough, and
the function equals `normal_`. Closer bounds are tried in temporary memory to find out how many
rounds the values need, and the recorded calls take the same decisions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dormant._extension import _C
from dormant.recording.dtensor_initialization import initialize_as_whole, is_initialized_as_whole
from dormant.recording.patches import Patch, declare
from dormant.tensors.storage import unrecorded

# sqrt(-2 log u) for the smallest u of each way in which ATen draws on the CPU
# (ATen/native/cpu/DistributionTemplates.h): in blocks of 16 from 24 random bits for float32 and
# narrower dtypes; otherwise, and in float64, one by one from 53 bits.
_FARTHEST_BLOCK = math.sqrt(2 * 24 * math.log(2))
_FARTHEST_SERIAL = math.sqrt(2 * 53 * math.log(2))
# For the rounding of log, sqrt, cos, and of mean + z * std in float32: a few units of 2^-24.
_ROUNDING = 1e-6

TruncNormal = Callable[..., torch.Tensor]


def one_round_suffices(
    tensor: torch.Tensor, mean: float, std: float, low: float, high: float
) -> bool:
    """Whether no normal draw for `tensor` can be outside [low, high].

    Args:
        tensor: the tensor to fill; only its dtype, device, size and strides are used.
        mean: mean of the normal distribution.
        std: its standard deviation.
        low: lower bound.
        high: upper bound.

    Returns:
        False also if this is not known: for other devices or dtypes, or invalid arguments.
    """
    if tensor.device.type != "cpu" or tensor.dtype not in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
    ):
        return False
    if not (std > 0 and math.isfinite(mean) and math.isfinite(std)):
        return False
    # A finite bound that the dtype cannot represent is an error in some versions.
    largest = torch.finfo(tensor.dtype).max
    if any(math.isnan(bound) or largest < abs(bound) < math.inf for bound in (low, high)):
        return False
    blocks = tensor.numel() >= 16 and tensor.is_contiguous() and tensor.dtype is not torch.float64
    reach = (_FARTHEST_BLOCK if blocks else _FARTHEST_SERIAL) * std
    reach += (reach + abs(mean)) * _ROUNDING
    return low <= mean - reach and mean + reach <= high


def fill_in_one_round(
    tensor: torch.Tensor, mean: float, std: float, generator: torch.Generator | None
) -> torch.Tensor:
    """`trunc_normal_` of `tensor` if `one_round_suffices`."""
    with torch.no_grad():
        return tensor.normal_(mean, std, generator=generator)


@functools.cache
def draws_plain_normals(trunc_normal: TruncNormal) -> bool:
    """Whether `trunc_normal_` of this torch equals `normal_` if one round is enough.

    torch 2.11 and older draw in another way, and a later release may too, so it is tried once.

    Args:
        trunc_normal: `torch.nn.init._no_grad_trunc_normal_`.
    """

    def in_rounds(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return trunc_normal(tensor, 0.5, 2.0, -90.0, 90.0, generator=generator)

    def in_one_round(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return fill_in_one_round(tensor, 0.5, 2.0, generator)

    states, values = [], []
    for fill in (in_rounds, in_one_round):
        generator = torch.Generator()
        generator.manual_seed(7)
        # torch.tensor is real even inside a context.
        values.append(fill(torch.tensor([0.0] * 40), generator).tolist())
        states.append(generator.get_state().tolist())
    return values[0] == values[1] and states[0] == states[1]


class _Answers(TorchFunctionMode):
    """Records the results of `any`, or returns the results recorded before."""

    def __init__(self, given: list[bool] | None = None) -> None:
        super().__init__()
        self.noted: list[bool] = []
        self._given = None if given is None else iter(given)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not torch.Tensor.any or len(args) != 1 or kwargs:
            return function(*args, **(kwargs or {}))
        if self._given is not None:
            return next(self._given)
        answer = bool(function(*args))
        self.noted.append(answer)
        return answer


def fill_in_tried_rounds(
    trunc_normal: TruncNormal,
    tensor: torch.Tensor,
    mean: float,
    std: float,
    low: float,
    high: float,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """`trunc_normal_` of a lazy tensor on the CPU, recorded with the decisions of eager mode.

    Args:
        trunc_normal: `torch.nn.init._no_grad_trunc_normal_`.
        tensor: the tensor to fill; it stays lazy.
        mean: mean of the normal distribution.
        std: its standard deviation.
        low: lower bound.
        high: upper bound.
        generator: the generator of the numbers; None means the global one.

    Returns:
        `tensor`.
    """
    refused: Exception | None = None
    with unrecorded(), torch.no_grad(), _Answers() as answers:
        trial = torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
        drawn_from = torch.Generator()
        drawn_from.set_state((generator or torch.default_generator).get_state())
        try:
            trunc_normal(trial, mean, std, low, high, generator=drawn_from)
        except Exception as error:
            refused = error
        del trial
    try:
        # A call that eager mode refuses, perhaps halfway, is refused here at the same point.
        with _Answers(answers.noted):
            return trunc_normal(tensor, mean, std, low, high, generator=generator)
    except StopIteration:  # the trial ended here, because memory ran out
        assert refused is not None
        raise refused from None


def _record_the_rounds(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def replacement(
        tensor: torch.Tensor,
        mean: float,
        std: float,
        a: float,
        b: float,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        if is_initialized_as_whole(tensor):
            return initialize_as_whole(
                tensor, lambda whole: replacement(whole, mean, std, a, b, generator)
            )
        if (
            _C.is_lazy(tensor)
            and one_round_suffices(tensor, mean, std, a, b)
            and draws_plain_normals(original)
        ):
            return fill_in_one_round(tensor, mean, std, generator)
        # A generator of another device cannot be tried, because its position is not known.
        if _C.is_lazy(tensor) and _C.recording() and tensor.device.type == "cpu":
            return fill_in_tried_rounds(original, tensor, mean, std, a, b, generator)
        filled: torch.Tensor = original(tensor, mean, std, a, b, generator=generator)
        return filled

    return replacement


declare(
    Patch(
        torch.nn.init,
        "_no_grad_trunc_normal_",
        "looks at the values after each round; records as many rounds as they need",
        _record_the_rounds,
    ),
)
