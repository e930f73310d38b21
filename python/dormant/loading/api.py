"""`load`: loads a checkpoint into a model, lazy or real, in one pass."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

import torch

from dormant.loading.encoded import forget_encoding, takes_packed
from dormant.loading.execution import execute
from dormant.loading.plan import LoadPlan, Policy, prepare, refused
from dormant.loading.stand_ins import StandIns
from dormant.loading.state import CheckpointLike, gather, own_dtype
from dormant.loading.turns import turn
from dormant.materialization.api import bring_to_life
from dormant.materialization.options import (
    Mmap,
    check_choice,
    check_dtype,
    checked_options,
)
from dormant.quantization.layers import adopt_parts, quantized_weights, tensors_of
from dormant.quantization.layerwise import pending_layers
from dormant.ranks.together import Together
from dormant.recording import patches
from dormant.reporting.memory import MemoryTrace, PeakMemory
from dormant.reporting.progress import Callback
from dormant.reporting.report import Report, with_memory_trace
from dormant.tensors.device import check_device
from dormant.tensors.names import Rename, grouped, renaming
from dormant.tensors.pretrained import is_pretrained
from dormant.text.printable import printable

# Number of groups of missing keys that a warning lists.
_NAMED = 50


@overload
def load(
    model: torch.nn.Module,
    checkpoint: CheckpointLike | Sequence[CheckpointLike],
    *,
    missing: Literal["warn", "init", "error"] = "warn",
    unexpected: Literal["error", "ignore"] = "error",
    mismatched: Literal["error", "init"] = "error",
    rename: Rename | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | str | int | None = None,
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    share_reads: bool = False,
    progress: bool | Callback | None = None,
    trace_memory: bool = False,
    verbose: bool = False,
    dry_run: Literal[False] = False,
) -> Report: ...


@overload
def load(
    model: torch.nn.Module,
    checkpoint: CheckpointLike | Sequence[CheckpointLike],
    *,
    missing: Literal["warn", "init", "error"] = "warn",
    unexpected: Literal["error", "ignore"] = "error",
    mismatched: Literal["error", "init"] = "error",
    rename: Rename | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | str | int | None = None,
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    share_reads: bool = False,
    progress: bool | Callback | None = None,
    trace_memory: bool = False,
    verbose: bool = False,
    dry_run: Literal[True],
) -> LoadPlan: ...


def load(
    model: torch.nn.Module,
    checkpoint: CheckpointLike | Sequence[CheckpointLike],
    *,
    missing: Literal["warn", "init", "error"] = "warn",
    unexpected: Literal["error", "ignore"] = "error",
    mismatched: Literal["error", "init"] = "error",
    rename: Rename | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | str | int | None = None,
    materialize: bool = True,
    memory_budget: int | str | None = None,
    mmap: Mmap = "auto",
    share_reads: bool = False,
    progress: bool | Callback | None = None,
    trace_memory: bool = False,
    verbose: bool = False,
    dry_run: bool = False,
) -> Report | LoadPlan:
    """Loads a checkpoint into a model and materializes the model, in one pass.

    What the checkpoint has is read once, cast and cut on the way, directly into its final memory.
    Parameters with missing keys get their recorded initialization. Nothing is initialized only to
    be overwritten. The result has the bits of eager construction followed by `load_state_dict`,
    which is what runs here, with its hooks, on lazy tensors.

    It succeeds or changes nothing: after any error or Ctrl-C, a lazy model is as lazy as before.
    Threads that load one model do so one after the other. All ranks that have parts of sharded
    parameters must call it together, and it succeeds on all of them or on none.

    There are two exceptions. If `dormant.quantize` left layers to another library's quantizer, it
    runs after everything else has succeeded; if it fails, the remaining layers are lazy, and
    `materialize` continues. Tensors that were real are written in place after everything has been
    checked; if reading then fails, the error names those that were written.

    Args:
        model: lazy, real or mixed. Sharded parameters (DTensor) read only their own part.
        checkpoint: a path or URL (see `open_checkpoint`), a `Checkpoint`, a state dict, or a
            sequence of these, in which later ones replace the tensors of earlier ones. The parts of
            a tensor-parallel set are merged. Encoded tensors (fp8, mxfp4, ...) are decoded. Weights
            that bitsandbytes packed are loaded unchanged into layers that `dormant.quantize`
            quantized. If a file has several mappings of tensors, the one that matches the model
            best is loaded. For a model of transformers, the checkpoint may have the names and
            layouts that its `from_pretrained` converts (see `Checkpoint.for_model`); the model is
            then saved in these again.
        missing: what to do if the model has names that the checkpoint does not have: "warn" and
            "init" initialize these parameters as recorded (real ones keep their values), and "warn"
            also warns and lists the names; "error" raises an error. A tied tensor needs only one of
            its names.
        unexpected: what to do if the checkpoint has names that the model does not have: "error"
            raises an error, "ignore" leaves them out. If no name matches, it is always an error.
        mismatched: what to do if shapes differ from the model's: "error" raises an error, "init"
            initializes these parameters.
        rename: from the checkpoint's names to the model's: a mapping of names, in which keys that
            are "" or end with "." stand for prefixes, or a function that returns the new name.
            None as the new name leaves tensors out. It applies to each of several checkpoints.
        dtype: floating-point and complex parameters and persistent buffers get this dtype. Other
            buffers, and what a model of transformers or diffusers keeps in float32, keep their
            precision (see `materialize`). "auto" is the checkpoint's own dtype, as in transformers:
            the one in config.json beside the files, otherwise the dtype of the first floating-point
            tensor. None keeps the model's dtypes.
        device: the device of the final tensors, as in `model.to(device)`. Values are read or
            computed on the CPU and copied in pieces, so the CPU's memory never holds a whole
            tensor, unless it is packed or was real. With `materialize=False`, it can only be the
            CPU.
        materialize: False leaves lazy tensors lazy; loaded ones then have the file as their source.
        memory_budget: bytes that loading may take besides the final tensors, a number or text like
            "2GiB"; None sets no limit.
        mmap: whether tensors that keep the file's dtype may map its bytes in place, privately, so
            that they take no time and no memory until they are read. "auto" does so if a program
            that writes to the file later must wait until the tensors have copies (safetensors on a
            local filesystem of Linux), "always" if nothing may write to the file as long as the
            model lives; "never" copies.
        share_reads: True makes ranks of torch.distributed that need the same bytes of files read
            them once: one rank reads a tensor and sends it to the others while it reads the next
            one. It is for models that are the same on all ranks (DDP), and for replicated parts of
            sharded parameters (HSDP, DTensor). All ranks of the default process group must call
            `load`. Tensors that are shared are never mapped. In one process it has no effect.
        progress: True shows a progress bar, False none. A function is called with (done, total)
            bytes. None shows a bar if stderr is a terminal and loading takes longer than a second.
        trace_memory: measure the memory of the process every few milliseconds in a separate thread;
            `Report.memory_trace` holds the measurements, and `Report.plot` draws them.
        verbose: print the report, or the plan.
        dry_run: read nothing and change nothing; return what would be done. (If the checkpoint has
            several names of one tensor, their values are read and compared.)

    Returns:
        Where each tensor came from, what was missing, and what it cost; with `dry_run`, the plan.

    Warns:
        UserWarning: keys are missing, and `missing` is "warn".

    Raises:
        TypeError: an argument has a type that cannot be used.
        ValueError: an option is not one of the possible values; `device` is given for tensors that
            stay lazy; the model has tensors on the meta device; a file is damaged or was changed
            since it was opened; tied names have different values; two tensors get one name; or the
            rules of transformers cannot be applied, for example because an expert is missing.
        KeyError: there are missing, unexpected or mismatched keys, all of which are listed, with
            the prefix to rename if this would help; or no name matches. Its attributes
            `missing_keys`, `unexpected_keys` and `mismatched_keys` are those of the report.
        NotImplementedError: a format or an operator is not supported; the message names it.
        RuntimeError: an operator failed, for example because memory is exhausted; the message names
            it. Or `load` was called in a callback of `load` or `materialize`, where it cannot wait
            for another thread that loads the same model.
        MemoryError: memory is exhausted.
        OSError: the system could not read a file; has its errno.
        KeyboardInterrupt: the user interrupted it.

    Example:
        >>> import pathlib, tempfile, torch, dormant
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.pt")
        ...     torch.save({"weight": torch.ones(2, 3)}, path)
        ...     with dormant.lazy_init():
        ...         layer = torch.nn.Linear(3, 2)
        ...     report = dormant.load(layer, path, missing="init")
        >>> report.count("checkpoint"), report.missing_keys, bool((layer.weight == 1).all())
        (1, ('bias',), True)
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"load: model must be a module, got {type(model).__name__}.")
    check_choice(missing, ("warn", "init", "error"), "missing", "load")
    check_choice(unexpected, ("error", "ignore"), "unexpected", "load")
    check_choice(mismatched, ("error", "init"), "mismatched", "load")
    if dtype != "auto":
        check_dtype(dtype, "load")
    place = check_device(device, "load")
    if place is not None and place.type != "cpu" and not materialize:
        raise ValueError(
            f"load: device={str(place)!r} with materialize=False: a lazy tensor is on the CPU "
            "until it is materialized. Leave device out here, and pass it to "
            "dormant.materialize(model, device=...)."
        )
    options = checked_options(
        "load",
        memory_budget=memory_budget,
        mmap=mmap,
        progress=progress,
        share_reads=share_reads,
    )
    rename_name = renaming(rename)
    _check_values_can_be_held(model)
    policy = Policy(missing, unexpected, mismatched)
    # Another library's quantizer needs whole layers: one after the other, from the file.
    layerwise = materialize and bool(pending_layers(model))
    peak = PeakMemory()
    # At the end, the lazy tensors of the checkpoint are gone.
    with (
        patches.in_use(),
        MemoryTrace(trace_memory) as trace,
        turn(model),
        Together("load", () if dry_run else (model,), shares_reads=share_reads) as together,
        StandIns(model) as stand_ins,
    ):
        started = time.perf_counter()
        adopt_parts([model], "load")
        state = gather(checkpoint, rename_name, tensors_of(model).keys(), takes_packed(model))
        chosen = own_dtype(state) if isinstance(dtype, str) else dtype
        defer = materialize and not layerwise
        prepared = prepare(model, state, chosen, policy, stand_ins, defer=defer)
        plan, rules = prepared.plan, prepared.rules
        # Packed parameters are saved under the model's own names.
        if any(weight.held_as != weight.name for weight in quantized_weights(model)):
            rules = None
        if dry_run or plan.refusal:
            prepared.held.restore()
            del state, prepared
            if not dry_run:
                raise refused(plan)
            if verbose:
                print(plan)
            return plan
        report = execute(
            model,
            prepared,
            stand_ins,
            options,
            together,
            place=place,
            materialize=materialize and not layerwise,
            peak=peak,
        )
        quantizer = getattr(model, "hf_quantizer", None)
        if state.is_decoded and quantizer is None and is_pretrained(model):
            forget_encoding(model.config)
        del state, prepared  # these would keep the replaced layers alive
        if layerwise:
            report = bring_to_life([("", model)], options, together, place=place)
        if rules is not None:
            # Then `save` and `save_pretrained` write such files again, as after `from_pretrained`.
            vars(model)["_weight_conversions"] = list(rules)
        seconds = time.perf_counter() - started
    report = replace(
        with_memory_trace(report, trace.samples),
        missing_keys=plan.missing_keys,
        unexpected_keys=plan.unexpected_keys,
        mismatched_keys=plan.mismatched_keys,
        seconds=seconds,
    )
    if missing == "warn" and plan.missing_keys:
        warnings.warn(_warning(plan.missing_keys), stacklevel=2)
    if verbose:
        print(report)
    return report


def _warning(missing: Sequence[str]) -> str:
    names = grouped(missing)
    lines = [f"\n  {printable(name)}" for name in names[:_NAMED]]
    if len(names) > _NAMED:
        lines.append(f"\n  ... {len(names) - _NAMED} more")
    return (
        f"load: {len(missing)} of the model's tensors {'is' if len(missing) == 1 else 'are'} "
        "missing from the checkpoint. Such tensors are initialized by the model, or keep their "
        "values if they have any:"
        f"{''.join(lines)}\n"
        "missing='init' accepts this without a warning, missing='error' makes it an error."
    )


def _check_values_can_be_held(model: torch.nn.Module) -> None:
    """Raises ValueError if the model has tensors on the meta device."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    held = [name for name, tensor in named.items() if tensor.is_meta]
    if held:
        raise ValueError(
            f"load: {len(held)} of {len(named)} tensors of the model are on the meta device, which "
            f"holds no values: {', '.join(map(printable, held[:10]))}"
            f"{', ...' if len(held) > 10 else ''}. Build the model in dormant.lazy_init() instead; "
            "or, if the checkpoint has all tensors, assign them: "
            "model.load_state_dict(dormant.open_checkpoint(path), assign=True) and "
            "dormant.materialize(model)."
        )
