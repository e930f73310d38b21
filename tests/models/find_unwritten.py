"""Finds tensors that eager construction leaves as the allocator returned them.

Builds every model of the catalogs in two processes whose fresh memory is filled with different
bytes (glibc's MALLOC_PERTURB_) and prints the tensors whose values differ: nothing ever wrote them,
so no construction can be compared with another there. Run it after changing a catalog, and leave
out what it prints, or name it to `compare` as `unwritten`:

    python tests/models/find_unwritten.py
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "lib"))

from libraries import CATALOGS, models, prepare

from reachable import holdings

FILLS = ("85", "170")


def digests() -> dict[str, str]:
    """A hash of the values of every tensor of every model, by `library/model/tensor`."""
    prepare()
    found = {}
    for library in CATALOGS:
        for row in models(library):
            torch.manual_seed(0)
            numpy.random.seed(0)
            random.seed(0)
            for name, tensor in holdings(row.build()).tensors.items():
                if tensor.device.type == "meta" or tensor.layout is not torch.strided:
                    continue
                with torch.no_grad():
                    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                digest = hashlib.sha256(flat.numpy()).hexdigest()
                found[f"{library}/{row.name}/{name}"] = digest
    return found


def digests_with_fill(fill: str) -> dict[str, str]:
    """The digests of a process of its own, whose fresh memory holds one byte throughout."""
    child = subprocess.run(
        [sys.executable, __file__, "--digests"],
        env={**os.environ, "MALLOC_PERTURB_": fill},
        stdout=subprocess.PIPE,
        check=True,
    )
    lines = child.stdout.decode().splitlines()
    return dict(json.loads(lines[-1]))


def main() -> None:
    if sys.argv[1:] == ["--digests"]:
        print(json.dumps(digests()))
        return
    left, right = (digests_with_fill(fill) for fill in FILLS)
    differ = [name for name in left if left[name] != right.get(name)]
    print("\n".join(differ) if differ else "every tensor is written")
    print(f"{len(left)} tensors compared, {len(differ)} never written", file=sys.stderr)


if __name__ == "__main__":
    main()
