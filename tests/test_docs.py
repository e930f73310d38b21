"""The documentation: its code runs, nothing public is left out, the site builds strictly."""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import dormant
from compare import assert_same_bits
from dormant import integrations
from dormant.recording.patches import declared
from pages import DOCS, ROOT, blocks, run_page

PAGES = sorted(DOCS.rglob("*.md"))
sys.path += [str(ROOT / "tools"), str(ROOT / "tests" / "models")]

from benchmark_tables import render  # noqa: E402
from value_readers import VALUE_READERS  # noqa: E402

# Code


def test_the_first_page_gives_the_eager_model() -> None:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=100
    )
    (block,) = blocks("index.md")
    names: dict[str, Any] = {"config": config}
    # The page's own has 7 billion parameters.
    block.run(names, {"from_config(LlamaConfig())": "from_config(config)"})
    state = names["model"].state_dict()
    torch.manual_seed(0)
    eager = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for name, expected in eager.state_dict().items():
        assert_same_bits(expected, state[name], name)


def test_how_it_works_says_what_happens() -> None:
    names = run_page("how_it_works.md")
    assert names["scale"] == 2.0


def test_the_example_of_hacking_is_recorded_and_computed_in_tiles() -> None:
    names = run_page(ROOT / "HACKING.md")
    torch.manual_seed(0)
    torch.empty(1000).normal_()
    expected = torch.empty(300, 500).normal_(0, 0.02).clamp_(-0.05, 0.05).to(torch.bfloat16)
    assert_same_bits(expected, names["weight"])
    assert dormant.is_lazy(names["first"])


def test_files_and_links_of_hacking_exist() -> None:
    text = (ROOT / "HACKING.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
    folders = ("benchmarks", "csrc", "examples", "fuzz", "include", "python", "tests", "tools")
    files = {path.name for folder in folders for path in (ROOT / folder).rglob("*.*")}
    named = set(re.findall(r"`(?:[\w/]+/)?(\w+\.(?:h|cpp|py))`", text))
    assert len(named) > 80
    placeholders = {name for name in named if name.lower().startswith("name")}
    assert sorted(named - files - placeholders - {"extension.h"}) == []  # that one is of torch


def test_coming_from_another_library(capsys: pytest.CaptureFixture[str]) -> None:
    model = run_page("coming_from.md")["model"]
    assert "Param lazy rate: 2/2" in capsys.readouterr().out
    assert not dormant.is_lazy(model)
    assert model.lm_head.weight.dtype is torch.bfloat16


def test_a_gpu_is_used_if_there_is_one() -> None:
    model = run_page("gpu.md")["model"]
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 256), torch.nn.Linear(256, 16)]
    eager = torch.nn.Sequential(*layers)
    for expected, got in zip(eager.parameters(), model.parameters(), strict=True):
        assert_same_bits(expected.detach().to(torch.bfloat16), got.detach().cpu())


def test_loading_without_initialization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    initializers = dict(vars(torch.nn.init))
    names = run_page("skip_init.md")
    assert initializers == dict(vars(torch.nn.init))
    for name, expected in names["trained"].state_dict().items():
        assert_same_bits(expected, names["model"].state_dict()[name], name)
    assert_same_bits(names["trained"].blocks[0].rates, names["model"].blocks[0].rates)


@pytest.mark.filterwarnings("ignore:from_pretrained.*head.weight")
def test_bugs_of_transformers_go_away() -> None:
    names = run_page("transformers_v5.md")
    library = names["Model"].from_pretrained(names["saved"](names["trained"], "head.bias"))
    assert not (library.head.weight == 1.5).any()  # what the page says of the library
    with pytest.raises(RuntimeError, match="meta"):
        names["Reader"].from_pretrained(names["saved"](names["reader"]))


def test_recipes_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3000, 3000), torch.nn.LayerNorm(3000))

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(4)
    state = run_page("recipes.md")["state"]
    assert (tmp_path / "model.recipe").stat().st_size < 20_000
    dormant.materialize(state)
    torch.manual_seed(4)
    for name, expected in build().state_dict().items():
        assert_same_bits(expected, state[name], name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_is_run_by_a_test(page: Path) -> None:
    if blocks(page):
        called = re.compile(rf'(?:blocks|run_page|follow_page)\("{re.escape(page.name)}"')
        tests = [
            path for path in (ROOT / "tests").rglob("test_*.py") if called.search(path.read_text())
        ]
        assert tests, f"no test runs the code of {page.name}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_code_and_output_fit_the_site(page: Path) -> None:
    fenced = re.findall(r"^```\w+[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()]
    # What a window of 1280 pixels shows beside the menus (docs/stylesheets/site.css).
    assert [line for line in lines if len(line) > 96] == []


# What is said


def test_every_public_name_is_in_the_reference() -> None:
    named = {
        line.removeprefix("::: ")
        for page in (DOCS / "reference").glob("*.md")
        for line in page.read_text().splitlines()
        if line.startswith("::: ")
    }
    values = {"cmake_prefix_path", "__version__"}
    public = [f"dormant.{name}" for name in dormant.__all__ if name not in values]
    public += [f"dormant.tensor_parallel.{name}" for name in ("merge", "split", "reshard")]
    for name in integrations.__all__:
        module = getattr(integrations, name)
        public += [
            f"{module.__name__}.{key}"
            for key, value in vars(module).items()
            if not key.startswith("_")
            and getattr(value, "__module__", "") == module.__name__
            and callable(value)
        ]
    assert [name for name in public if name not in named] == []


def test_the_limits_list_the_models_that_read_values() -> None:
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \|", (DOCS / "limits.md").read_text(), re.MULTILINE)
    expected = [(library, model) for library, models in VALUE_READERS.items() for model in models]
    assert sorted(rows) == sorted(expected)


def test_the_limits_list_the_replaced_functions() -> None:
    section = (DOCS / "limits.md").read_text().split("## Replaced Python functions")[1]
    listed = {
        (owner, name)
        for owners, names in re.findall(r"^\| (`.*?) \| (`.*?) \|$", section, re.MULTILINE)
        for owner in re.findall(r"`(.*?)`", owners)
        for name in re.findall(r"`(.*?)`", names)
    }
    of_torch = {owner for owner, _ in listed if owner.startswith("torch")}
    shown = {id(pkgutil.resolve_name(owner)): owner for owner in of_torch}
    expected = {
        (
            patch.owner.replace(":", ".")
            if isinstance(patch.owner, str)
            else shown[id(patch.owner)],
            patch.name,
        )
        for patch in declared()
    }
    if torch.__version__ < "2.15":
        expected.add(("torch.Tensor", "__setitem__"))
    assert listed == expected


def messages_of(source: Path) -> str:
    """The text in a file's string literals; what is filled in at run time is a null character."""
    text = source.read_text()
    if source.suffix == ".cpp":
        joined = re.sub(r'"\s*\n\s*"', "", text)
        return "\0".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', joined))
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


def test_the_messages_of_the_troubleshooting_page_are_in_the_sources() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `(.+?)`", page, re.MULTILINE)
    assert len(quoted) >= 30
    sources = [*(ROOT / "python" / "dormant").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    messages = [messages_of(source) for source in sources if "_test" not in source.stem]

    def is_said(quote: str) -> bool:
        pieces = [re.escape(piece.strip()) for piece in quote.split("...") if piece.strip()]
        said = re.compile(".{0,200}?".join(pieces), re.DOTALL)
        return any(said.search(text) for text in messages)

    assert [quote for quote in quoted if not is_said(quote)] == []


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 8
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


# Benchmark page

MACHINE = {
    "processor": "Some(R) Processor",
    "cores": 2,
    "huge_pages": "always [madvise] never",
    "torch": "2.13.0",
    "capability": "AVX2",
    "python": "3.11.1",
    "load_average": 0.5,
}


def write_result(folder: Path, task: str, **changed: Any) -> None:
    sheet = {
        "title": "a | b",
        "columns": ["", "seconds"],
        "rows": [["<us>", "0.1"]],
        "notes": ["n"],
    }
    result = {"date": "2026-11-30", "command": f"make {task}", "machine": MACHINE, "task": task}
    result |= {"sheets": [sheet], "compared": 3, "mismatches": []}
    (folder / f"{task}.json").write_text(json.dumps({**result, **changed}))


def test_benchmarks_are_tables_under_the_machine_in_words(tmp_path: Path) -> None:
    for task in ("load", "unheard_of", "construct"):
        write_result(tmp_path, task)
    page = render(tmp_path)
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Construct", "Load", "Unheard of"]
    assert page.count("2 cores (Some Processor, AVX2), torch 2.13.0, Python 3.11.1") == 3
    assert page.count("Measured on 2026-11-30 by `make ") == 3
    assert "### a \\| b\n\n|   | seconds |\n|:--|--:|\n| &lt;us&gt; | 0.1 |\n\n- n" in page
    assert page.count("Outputs compared before timing: 3, all equal.") == 3
    assert "Other programs" not in page


def test_the_committed_results_are_whole_runs() -> None:
    results = ROOT / "benchmarks" / "results"
    page = render(results)
    assert page.count("Measured on 20") == len(list(results.glob("*.json"))) >= 2
    assert "--quick" not in page
    assert "compared outputs differ" not in page


def test_the_measured_times_of_a_page_are_the_committed_ones() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "skip_init.json").read_text())
    page = (DOCS / "skip_init.md").read_text()
    cells: dict[str, list[str]] = {}
    for sheet in result["sheets"]:
        for name, _, processor, peak in sheet["rows"]:
            cells.setdefault(name, [name]).append(f"{processor} s, {peak}")
    assert len(cells) == 4
    for row in cells.values():
        assert f"| {' | '.join(row)} |" in page
    assert f"Measured on {result['date']} by `{result['command']}`" in page


def test_benchmarks_say_what_spoils_them(tmp_path: Path) -> None:
    machine = {**MACHINE, "load_average": 9.0}
    write_result(tmp_path, "load", machine=machine, mismatches=["weight: differs"])
    page = render(tmp_path)
    assert "the load average was 9.0" in page
    assert "**1 of 3 compared outputs differ" in page
    assert "- weight: differs" in page


def test_without_benchmarks_the_page_says_so(tmp_path: Path) -> None:
    assert "This page has no results" in render(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"task": "load"}'])
def test_a_file_that_is_no_result_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "load.json").write_text(text)
    with pytest.raises(ValueError, match=r"load\.json"):
        render(tmp_path)


# The site


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the site is built with Python 3.11 or later"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    write_result(results, "load")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "DORMANT_BENCHMARKS": str(results), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    home = (site / "index.html").read_text()
    for page in PAGES:
        built = page.relative_to(DOCS).with_suffix(".html")
        assert f'href="{built}"' in home, f"the menu lacks {built}"
    # From docstrings: a heading, and a sentence that no page has.
    reference = (site / "reference" / "building.html").read_text()
    assert 'id="dormant.materialize"' in reference
    assert "It is atomic for each storage" in reference
    assert "Example" in reference
    assert (
        "<blockquote>" not in reference
    )  # what an example in a docstring becomes if it is no code
    assert "Some Processor" in (site / "benchmarks.html").read_text()
