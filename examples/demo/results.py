"""The results of the demo: differences, the table, and numbers for other programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measurement import Measurement
from rich import box
from rich.table import Table

from dormant.text.table import format_bytes


@dataclass(frozen=True)
class Result:
    """Both ways of one case."""

    title: str
    ordinary: Measurement
    dormant: Measurement

    def differences(self) -> list[str]:
        """One line for each tensor or output that is not equal."""
        expected, got = self.ordinary.digests, self.dormant.digests
        lines = [
            f"{self.title}, {name}: {expected.get(name, 'nothing')} the ordinary way, "
            f"{got.get(name, 'nothing')} with Dormant"
            for name in expected | got
            if expected.get(name) != got.get(name)
        ]
        if not expected:
            lines.append(f"{self.title}: nothing was compared")
        if self.ordinary.outputs != self.dormant.outputs:
            lines.append(f"{self.title}: the outputs of the model differ")
        return lines

    def verdict(self) -> str:
        """Equal or not, in a few words."""
        differences = len(self.differences())
        if differences:
            return f"[bold red]different: {differences}[/]"
        outputs = ", outputs" if self.dormant.outputs else ""
        return f"[green]equal: {len(self.dormant.digests)} tensors{outputs}[/]"


def table(results: Mapping[str, Result]) -> Table:
    """For each case, its title, a row for each way, and whether they are equal; 80 columns wide."""
    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption=_CAPTION, caption_justify="left"
    )
    made.add_column("")
    for title in ("time", "read once", "processor", "peak", "weights"):
        made.add_column(title, justify="right", min_width=9, no_wrap=True)
    for result in results.values():
        made.add_row(result.title)
        for name, measured in (("ordinary", result.ordinary), ("dormant", result.dormant)):
            style = "[bold]" if name == "dormant" else ""
            made.add_row(
                f"  {style}{name}",
                f"{style}{measured.seconds:.2f} s",
                f"{style}{measured.used:.2f} s",
                f"{style}{measured.processor:.2f} s",
                style + ("-" if measured.peak is None else format_bytes(measured.peak)),
                f"{style}{format_bytes(measured.nbytes)}",
            )
        made.add_row(f"  {result.verdict()}", end_section=True)
    return made


_CAPTION = (
    "Each row is one run in a separate process, with the files in the page cache. equal: the same "
    "bits. ordinary: from_pretrained of transformers, with bitsandbytes for nf4 and int8; to write "
    "files, construction and save_pretrained, compared with the command dormant init; without the "
    "pooler, construction and load_state_dict. time: until the model is returned. read once: until "
    "every page of its weights was read, because mapped weights are only read when they are used. "
    "processor: time of all threads until then. peak: highest resident memory until then, with "
    "pages of files, minus that at the start. weights: bytes of the tensors at the end."
)


def similarity_table(sentences: tuple[str, ...], results: Mapping[str, Result]) -> Table:
    """How similar the sentences are to the first one, in the embeddings of Dormant's models."""
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title=f'How similar to "{sentences[0]}"?',
        title_justify="left",
    )
    made.add_column("sentence")
    for result in results.values():
        made.add_column(result.title, justify="right")
    for row, sentence in enumerate(sentences[1:], start=1):
        values = [f"{result.dormant.values[0][row]:.3f}" for result in results.values()]
        made.add_row(sentence, *values)
    return made


def machine() -> str:
    """The machine and the libraries, in words."""
    import torch

    names = ("torch", "transformers", "bitsandbytes", "safetensors")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{platform.system()}, {_processor()}, {os.cpu_count()} processors, "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def plain(results: Mapping[str, Result]) -> dict[str, Any]:
    """Everything but digests in dicts, lists, numbers and strings, as for JSON."""
    return {
        name: {
            "title": result.title,
            "differences": result.differences(),
            "compared": len(result.dormant.digests),
            **{
                way: {key: value for key, value in asdict(measured).items() if key != "digests"}
                for way, measured in (("ordinary", result.ordinary), ("dormant", result.dormant))
            },
        }
        for name, result in results.items()
    }
