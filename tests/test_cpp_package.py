"""The C++ side of an installed dormant: its CMake package, headers, examples and documentation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import gguf
import numpy
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import dormant
from gguf_models import Case, configuration, finish, tensors, write_header
from pages import blocks

ROOT = Path(__file__).resolve().parent.parent
CMAKE = Path(sys.executable).with_name("cmake")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def configure(source: Path, build: Path, prefixes: str) -> subprocess.CompletedProcess[str]:
    ninja = f"-DCMAKE_MAKE_PROGRAM={CMAKE.with_name('ninja')}"
    return run(
        CMAKE, "-G", "Ninja", ninja, "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefixes}",
        cwd=source,
    )  # fmt: skip


@pytest.fixture(scope="module")
def prefixes() -> str:
    return f"{dormant.cmake_prefix_path};{torch.utils.cmake_prefix_path}"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, prefixes: str) -> Path:
    """The example programs, built against the installed package."""
    build = tmp_path_factory.mktemp("examples")
    configured = configure(ROOT / "examples" / "cpp", build, prefixes)
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = run(CMAKE, "--build", ".", cwd=build)
    assert built.returncode == 0, built.stdout + built.stderr
    return build


@pytest.mark.timeout(900)
def test_example_program_equals_eager_construction(examples: Path) -> None:
    ran = run(examples / "lazy_transformer", cwd=examples)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "equal to eager construction, bit for bit: 25 parameters" in ran.stdout


@pytest.mark.timeout(900)
def test_loaded_checkpoint_equals_eager_construction_and_copy(
    examples: Path, tmp_path: Path
) -> None:
    ran = run(examples / "load_checkpoint", tmp_path, cwd=examples)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # torch::tensor, which makes num_batches_tracked, is real at once, as it is in Python.
    assert "loaded 2, initialized 6, kept 1: equal to eager construction and copy_" in ran.stdout


PROMPT = [3, 17, 200, 5, 90]
COUNT = 12


def chosen_tokens(model: torch.nn.Module) -> list[int]:
    """What the model of transformers chooses greedily after the prompt."""
    tokens = list(PROMPT)
    with torch.no_grad():
        for _ in range(COUNT):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(PROMPT) :]


def tokens_of(examples: Path, model: Path) -> list[int]:
    """What the example program chooses."""
    ran = run(
        *(examples / "llama", model, ",".join(map(str, PROMPT)), str(COUNT)),
        cwd=examples,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [int(token) for token in ran.stdout.strip().split(",")]


def quantized_by(examples: Path, model: Path, folder: Path) -> None:
    ran = run(examples / "llama", model, "--quantize", folder, cwd=examples)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def assert_has_codes_of(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """The matrices of layers are what bitsandbytes makes of these, rounded to bfloat16."""
    saved = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            codes, state = bitsandbytes.functional.quantize_4bit(
                weight.bfloat16(), quant_type="nf4", compress_statistics=True
            )
            assert torch.equal(saved[name], codes)
            for part, tensor in state.as_dict(packed=True).items():
                assert torch.equal(saved[f"{name}.{part}"], tensor)
        else:
            assert torch.equal(saved[name], weight.bfloat16())


def model_of(folder: Path) -> torch.nn.Module:
    """transformers' Llama with what a folder has, in float32."""
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = transformers.LlamaForCausalLM(config).float()
    checkpoint = dormant.open_checkpoint(folder)
    weights = {name: checkpoint[name].float() for name in checkpoint}
    model.load_state_dict(weights, strict=not config.tie_word_embeddings)
    return model.eval()


def q4_k_m(folder: Path, *, tied: bool) -> Path:
    """A Llama of random bits in the types that llama.cpp calls Q4_K_M."""
    case = Case(
        "llama",
        {
            "embedding_length": 256,
            "feed_forward_length": 512,
            "vocab_size": 256,
            "rope.dimension_count": 64,
            "rope.freq_base": 5e5,
        },
    )
    config = configuration(case, folder)
    config.vocab_size, config.tie_word_embeddings = 256, tied
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    path = folder / "model.gguf"
    writer = write_header(case, path)
    random = numpy.random.default_rng(11)
    for name, values in tensors(case, model).items():
        if values.ndim == 1:
            writer.add_tensor(name, numpy.abs(values) * 0.3 + 0.5)
            continue
        is_large = name.startswith("output") or "attn_v" in name or "ffn_down" in name
        kind = gguf.GGMLQuantizationType.Q6_K if is_large else gguf.GGMLQuantizationType.Q4_K
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = values.shape
        blocks = random.integers(0, 256, (rows, columns // elements, size), dtype=numpy.uint8)
        # Scales of which weights of ordinary size come.
        if is_large:
            blocks[..., -2:] = numpy.array([1e-4], dtype=numpy.float16).view(numpy.uint8)
        else:
            scales = numpy.array([5e-4, 3.7e-3], dtype=numpy.float16)
            blocks[..., :4] = scales.view(numpy.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)
    finish(writer)
    return path


@pytest.mark.timeout(900)
@pytest.mark.parametrize("tied", [False, True])
def test_llama_of_a_gguf_file_generates_the_tokens_of_transformers(
    tied: bool, examples: Path, tmp_path: Path
) -> None:
    path = q4_k_m(tmp_path, tied=tied)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    expected = chosen_tokens(theirs)
    assert len(set(expected)) > 2  # not one token again and again
    assert tokens_of(examples, path) == expected
    if not tied:
        quantized_by(examples, path, tmp_path / "nf4")
        assert_has_codes_of(tmp_path / "nf4", theirs.state_dict())
        assert tokens_of(examples, tmp_path / "nf4") == chosen_tokens(model_of(tmp_path / "nf4"))


@pytest.mark.timeout(900)
def test_llama_of_an_fp8_folder_generates_the_tokens_of_transformers(
    examples: Path, tmp_path: Path
) -> None:
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=192, intermediate_size=320, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(11)
    model = transformers.LlamaForCausalLM(config)
    stored: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("_proj.weight"):
            stored[name] = (tensor + torch.randn_like(tensor) * 0.1).bfloat16()
            plain[name] = stored[name].float()
            continue
        codes = torch.randn(tensor.shape).to(torch.float8_e4m3fn)
        rows, columns = (-(-size // 128) for size in tensor.shape)
        scales = torch.rand(rows, columns) * 0.1 + 0.02
        stored[name], stored[f"{name}_scale_inv"] = codes, scales
        spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
        weight = codes.float() * spread[: tensor.shape[0], : tensor.shape[1]]
        plain[name] = weight.bfloat16().float()
    save_file(stored, tmp_path / "model.safetensors")
    said = {
        **config.to_dict(),
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    model.load_state_dict(plain)
    expected = chosen_tokens(model.float().eval())
    assert len(set(expected)) > 2  # not one token again and again
    assert tokens_of(examples, tmp_path) == expected
    quantized_by(examples, tmp_path, tmp_path / "nf4")
    assert_has_codes_of(tmp_path / "nf4", plain)
    assert tokens_of(examples, tmp_path / "nf4") == chosen_tokens(model_of(tmp_path / "nf4"))


PAGES = {
    "readme": ROOT / "README.md",
    "installation": ROOT / "docs" / "installation.md",
    "reference": ROOT / "docs" / "reference" / "cpp.md",
}


def program_of_the_pages() -> str:
    """The code of each page in a function of its name, which the first argument calls."""
    includes, functions = ["#include <iostream>"], []
    for name, page in PAGES.items():
        lines = "".join(block.code for block in blocks(page, "cpp")).splitlines()
        includes += [line for line in lines if line.startswith("#include")]
        body = [line for line in lines if not line.startswith("#include")]
        functions.append("\n".join([f"void {name}() {{", *body, "}"]))
    calls = [f'  if (std::string(argv[1]) == "{name}") {name}();' for name in PAGES]
    return "\n".join(
        [
            *includes,
            "#include <torch/torch.h>",
            "torch::nn::Linear MyModel() { return torch::nn::Linear(256, 64); }",
            *functions,
            "int main(int, char** argv) {",
            *calls,
            '  std::cout << "ran\\n";',
            "}",
        ]
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, prefixes: str) -> Path:
    """A program of the C++ code in the documentation, built as that says."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "program.cpp").write_text(program_of_the_pages())
    (linking,) = blocks(PAGES["installation"], "cmake")
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\nproject(pages LANGUAGES CXX)\n"
        # Compiling is what takes time here.
        "set(CMAKE_CXX_FLAGS -O0)\n"
        f"add_executable(program program.cpp)\n{linking.code}"
    )
    configured = configure(folder, folder / "build", prefixes)
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = run(CMAKE, "--build", "build", cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "build" / "program"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_documentation_compiles_and_runs(
    pages: Path, page: str, tmp_path: Path
) -> None:
    # What the page of the reference loads is a part of what it built; the others load all of it.
    names = ("2.weight", "2.bias") if page == "reference" else ("weight", "bias")
    sizes = ((8, 64), (8,)) if page == "reference" else ((64, 256), (64,))
    tensors = {name: torch.ones(size) for name, size in zip(names, sizes, strict=True)}
    save_file(tensors, tmp_path / "model.safetensors")
    ran = run(pages, page, cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ran\n", "")


def test_reference_names_everything_public() -> None:
    page = PAGES["reference"].read_text()
    headers = sorted((ROOT / "include" / "dormant").glob("*.h"))
    declared = {
        name
        for header in headers
        for names in re.findall(
            # Functions that are exported, types, and the members of options and reports.
            r"^(?:DORMANT_API [\w:]+ (\w+)\(|(?:struct|enum class|class DORMANT_API) (\w+)\b[^;]*\{"
            r"|  std::\S+(?:<.*>)? (\w+[^\W_])(?: = .*)?;)",
            header.read_text(),
            re.MULTILINE,
        )
        for name in names
        if name
    }
    assert {"materialize", "load", "LoadOptions", "rename", "Missing", "ignored"} <= declared
    assert [name for name in sorted(declared) if not re.search(rf"\b{name}\b", page)] == []


def test_library_hides_what_is_not_marked_for_export() -> None:
    (library,) = Path(dormant.__file__).parent.glob("_builds/*/libdormant.so")
    symbols = run("nm", "--dynamic", "--defined-only", "--demangle", library, cwd=ROOT).stdout
    assert " dormant::materialize(" in symbols
    # Internals that are not marked, and a header-only library that another one may bring too.
    assert " dormant::random::advance(" not in symbols
    assert "nlohmann::" not in symbols


@pytest.fixture(scope="module")
def torch_for_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This torch as one built for CUDA looks on a machine that has no CUDA toolkit.

    Its libraries need one that lies elsewhere, and its CMake package wants the toolkit.
    """
    real = Path(torch.__file__).parent
    if torch.version.cuda is not None:
        return real
    folder = tmp_path_factory.mktemp("torch")
    (folder / "include").symlink_to(real / "include")
    (folder / "lib").mkdir()
    for library in (real / "lib").glob("*.so*"):
        if library.name != "libtorch.so":
            (folder / "lib" / library.name).symlink_to(library)
    config = folder / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
    config.parent.mkdir(parents=True)
    config.write_text('message(FATAL_ERROR "cannot find the CUDA libraries")')
    source = folder / "lib" / "cuda.c"
    source.write_text("void launch(void); void run(void) { launch(); }")
    (folder / "runtime.c").write_text("void launch(void) {}")
    shared = ("cc", "-shared", "-fPIC", "-Wl,--no-as-needed", "-L.")
    for name, *inputs in (
        ("libcudart.so.99", "../runtime.c"),
        ("libtorch_cuda.so", "cuda.c", "-l:libcudart.so.99"),
        ("libtorch.so", "-l:libtorch_cuda.so", "-l:libtorch_cpu.so"),
    ):
        made = run(*shared, "-o", name, f"-Wl,-soname,{name}", *inputs, cwd=folder / "lib")
        assert made.returncode == 0, made.stderr
    (folder / "lib" / "libcudart.so.99").unlink()
    return folder


ROOMS = (
    "dormant", "system/fork", "text/printable", "simd/level", "random/position", "record/geometry",
    "recipe/value", "tile/region", "checkpoint/index", "quantize/int8_rows",
)  # fmt: skip


@pytest.mark.timeout(900)
def test_dormant_compiles_with_a_torch_built_for_cuda_and_no_toolkit(
    torch_for_cuda: Path, tmp_path: Path
) -> None:
    build = tmp_path / "build"
    configured = run(
        CMAKE, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={CMAKE.with_name('ninja')}", "-S", ROOT, "-B",
        build, f"-DDORMANT_TORCH_DIR={torch_for_cuda}", f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Debug",
        cwd=tmp_path,
    )  # fmt: skip
    assert configured.returncode == 0, configured.stdout + configured.stderr
    objects = [f"CMakeFiles/dormant.dir/csrc/{name}.cpp.o" for name in ROOMS]
    objects.append("CMakeFiles/_C.dir/csrc/bindings/refusal.cpp.o")
    built = run(CMAKE.with_name("ninja"), *objects, cwd=build)
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.mark.timeout(900)
def test_a_program_links_to_a_torch_built_for_cuda_and_no_toolkit(
    torch_for_cuda: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.cpp").write_text(
        "#include <dormant/dormant.h>\nint main() { return dormant::is_lazy({}) ? 1 : 0; }"
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\nproject(consumer LANGUAGES CXX)\n"
        "set(CMAKE_CXX_FLAGS -O0)\nfind_package(dormant REQUIRED)\n"
        f"if(NOT dormant_TORCH_DIR MATCHES ^{torch_for_cuda})\n"
        "  message(FATAL_ERROR ${dormant_TORCH_DIR})\nendif()\n"
        "add_executable(program program.cpp)\n"
        "target_link_libraries(program dormant::dormant)\n"
    )
    prefixes = f"{dormant.cmake_prefix_path};{torch_for_cuda / 'share' / 'cmake'}"
    configured = configure(tmp_path, tmp_path / "build", prefixes)
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = run(CMAKE, "--build", "build", cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr


def test_package_of_another_torch_is_refused(tmp_path: Path, prefixes: str) -> None:
    package = tmp_path / "dormant"
    shutil.copytree(Path(dormant.__file__).parent / "share", package / "share")
    (package / "_builds" / "2.99.0").mkdir(parents=True)
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\n"
        "project(consumer LANGUAGES CXX)\n"
        "find_package(dormant REQUIRED)\n"
    )
    refused = configure(source, tmp_path / "build", f"{package};{prefixes}")
    assert refused.returncode != 0
    assert "was built for torch 2.99.0" in refused.stderr.replace("\n", " ").replace("  ", " ")
