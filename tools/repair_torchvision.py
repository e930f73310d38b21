"""Lets a torchvision that was built for CUDA be imported beside a CPU build of torch.

The package index has only CUDA builds of torchvision for Linux. Their operators cannot be loaded
without CUDA's libraries, which torchvision tolerates, except that one of its modules registers
shape rules for two operators which then do not exist. Declaring those is enough; calling one is an
error that names it. Run by the Makefile in its own environment; harmless where torchvision
works.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

MARK = "# appended by dormant's tools/repair_torchvision.py"
DECLARATION = f"""

{MARK}
if not _has_ops() and not hasattr(torch.ops.torchvision, "nms"):
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(f"{{_name}}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def imports() -> bool:
    """Whether a fresh interpreter can import torchvision."""
    command = [sys.executable, "-c", "import torchvision"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Repairs the installed torchvision if it needs it, and checks that it helped."""
    if imports():
        return
    # find_spec of a submodule would import the package.
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        raise SystemExit("dormant: torchvision is not installed; run `make build` again")
    extension = Path(package.origin).with_name("extension.py")
    if MARK not in extension.read_text():
        with extension.open("a") as file:
            file.write(DECLARATION)
    if not imports():
        raise SystemExit(
            f"dormant: torchvision in {extension.parent} cannot be imported beside this torch, and "
            "declaring its operators did not help. Install the CPU build that belongs to this "
            "torch into the environment and run make again."
        )


if __name__ == "__main__":
    main()
