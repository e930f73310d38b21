"""Models of which less than 99 % of the bytes stay lazy, and the operators that read values.

Every entry names the operators as `dormant._C.value_reads()` reports them, those that read more
than 1 % of the model, and says why the model's own code needs the values while it is built.
`claims.py` checks both directions: a model that is not listed keeps 99 % lazy, a model that is
listed does not, and reads through exactly these operators: an entry that stopped being true fails.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ValueReader:
    """Why a model cannot stay lazy.

    Args:
        operators: What read values; none where the tensors were real from the start.
        because: What the model's code does with the values.
    """

    operators: frozenset[str]
    because: str


def _reads(*operators: str, because: str) -> ValueReader:
    return ValueReader(frozenset(f"aten::{name}" for name in operators), because)


VALUE_READERS: dict[str, dict[str, ValueReader]] = {
    "transformers": {
        "VideoMAEForPreTraining": _reads(
            because="computes its position tables with numpy and wraps them by torch.FloatTensor, "
            "which fills memory that it gets; at this size they are 7 % of the model",
        ),
    },
    "timm": {
        "TinyVit": _reads(
            because="makes its attention's index tables by torch.LongTensor of a list, which fills "
            "memory that it gets; at this size they are 18 % of the model",
        ),
        "vit_tiny_r_s16_p8_224": _reads(
            "convolution",
            "native_batch_norm",
            because="runs the convolutional stem on zeros to learn the size of its feature map",
        ),
    },
    "torchvision": {
        "ssdlite320_mobilenet_v3_large": _reads(
            "convolution",
            "native_batch_norm",
            because="runs the backbone on zeros to learn the channels of its feature maps",
        ),
    },
    "diffusers": {},
}
