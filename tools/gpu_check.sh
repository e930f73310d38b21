#!/usr/bin/env bash
# Builds the package against the torch of a Python that is already installed, and checks it on that machine's GPU.
#
#   tools/gpu_check.sh [PYTHON [DEVICE]]
#
# PYTHON (default: python3) must have torch 2.11 or later for CUDA, numpy, safetensors and nlohmann_json; cmake and
# ninja may be anywhere in PATH or beside PYTHON. bitsandbytes is optional. Nothing is downloaded. Takes a few minutes, most of
# them for compiling. DEVICE "hpu" tries the script on a machine without a GPU, on a simulated device. Exit status: 0 if
# everything passed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
device=${2:-cuda}
PATH="$(dirname "$python"):$PATH"
build=build-gpu
site=$PWD/$build/site

missing=()
for module in torch numpy safetensors nlohmann_json; do
  "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" || missing+=("$module")
done
for tool in cmake ninja c++; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]})); then
  echo "gpu_check: missing: ${missing[*]}. Install them, or name another Python: tools/gpu_check.sh PYTHON" >&2
  exit 2
fi
"$python" - "$device" <<'PYTHON'
import sys
import torch

print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit("gpu_check: torch sees no GPU")
    print(torch.cuda.get_device_name(0))
PYTHON

seconds() { date +%s.%N; }
since() { awk -v begin="$1" -v end="$(seconds)" 'BEGIN { printf "%6.1f s", end - begin }'; }

begin=$(seconds)
mkdir -p "$build"
{
  cmake -G Ninja -S . -B "$build" -Wno-dev -DPython_EXECUTABLE="$python" -DDORMANT_TESTS=OFF &&
    ninja -C "$build" package_files &&
    rm -rf "$site" && mkdir -p "$site" && cp -r python/. "$site/" &&
    cmake --install "$build" --prefix "$site/dormant" &&
    if [[ $device == hpu ]]; then "$python" tests/lib/fake_device.py "$build"; fi
} >"$build/gpu_check.log" 2>&1 || {
  tail -20 "$build/gpu_check.log" >&2
  echo "gpu_check: the build failed; everything it printed is in $build/gpu_check.log" >&2
  exit 1
}
printf '%-45s %-8s %s\n' build passed "$(since "$begin")"

failed=0
export PYTHONPATH=$site DORMANT_FAKE_DEVICE=$PWD/$build/fake_device.so
for job in $("$python" tests/device/jobs.py --list); do
  begin=$(seconds)
  if timeout 120 "$python" tests/device/jobs.py "$device" "$job" >"$build/$job.log" 2>&1; then
    result=passed
  else
    result=FAILED
    failed=1
  fi
  printf '%-45s %-8s %s\n' "$job" "$result" "$(since "$begin")"
  [[ $result == passed ]] || tail -5 "$build/$job.log"
done

"$python" - "$device" <<'PYTHON'
import sys
import tempfile
import time
from pathlib import Path

import torch

if sys.argv[1] != "cuda":
    sys.exit()
import dormant


def rate(title: str, action) -> None:
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        nbytes = action()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    print(f"{title:45} {nbytes / sorted(times)[1] / 1e9:6.2f} GB/s")


def build() -> torch.nn.Module:
    with dormant.lazy_init(dtype=torch.bfloat16):
        return torch.nn.ModuleList(torch.nn.Linear(8192, 8192, bias=False) for _ in range(8))


def initialized() -> int:
    return dormant.materialize(build(), device="cuda").nbytes


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "model.safetensors")
    dormant.save(build(), path)

    def loaded() -> int:
        return dormant.load(build(), path, device="cuda").nbytes

    def loaded_and_moved() -> int:
        model = build()
        report = dormant.load(model, path)
        model.to("cuda")
        return report.nbytes

    rate("random bfloat16 weights to the GPU", initialized)
    rate("a file to the GPU", loaded)
    rate("the same, first into the CPU's memory", loaded_and_moved)
PYTHON
exit "$failed"
