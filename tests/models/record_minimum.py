"""Writes `minimum.json`: how many tensors and bytes each model of the catalogs has in eager.

The tests compare at least these, so that a comparison which silently loses tensors fails. Run it
after changing a catalog or a pinned library, and look at the difference:

    python tests/models/record_minimum.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "lib"))

from libraries import CATALOGS, models, prepare

from reachable import holdings


def size(root: object) -> dict[str, int]:
    """Distinct tensor objects, and the bytes of their distinct storages (none on meta)."""
    tensors = {id(tensor): tensor for tensor in holdings(root).tensors.values()}
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in tensors.values()
        if tensor.layout is torch.strided and tensor.device.type != "meta"
    }
    return {"tensors": len(tensors), "bytes": sum(storages.values())}


def main() -> None:
    prepare()
    minimum = {
        library: {row.name: size(row.build()) for row in models(library)} for library in CATALOGS
    }
    target = Path(__file__).parent / "minimum.json"
    # One model a line: a changed library shows as a readable difference.
    text = ",\n".join(
        f'  "{library}": {{\n'
        + ",\n".join(f'    "{name}": {json.dumps(counts)}' for name, counts in sorted(rows.items()))
        + "\n  }"
        for library, rows in minimum.items()
    )
    target.write_text(f"{{\n{text}\n}}\n")
    json.loads(target.read_text())


if __name__ == "__main__":
    main()
