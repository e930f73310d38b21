"""The full-precision model never exists: peaks, measured in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from child import in_child, sees_the_memory

MIB = 1 << 20
LAYERS, SIZE = 6, 4096
FLOAT_LAYER = 4 * SIZE * SIZE
# Six layers of 64 MiB in float32. Tiles, and pages of code that runs for the first time.
BUDGET = 32 * MIB
PRELUDE = """
    import json, sys, torch, dormant, bitsandbytes, safetensors.torch
    from dormant.reporting.memory import highest_resident_bytes, resident_bytes

    def build(size, layers):
        with dormant.lazy_init():
            return torch.nn.Sequential(
                *(torch.nn.Linear(size, size, bias=False) for _ in range(layers))
            )

    def half(layer):
        return layer.half()

    def run(scheme, size, layers, path=None):
        model = build(size, layers)
        dormant.quantize(model, scheme, skip=())
        before = resident_bytes()
        if path is None:
            dormant.materialize(model)
        else:
            dormant.load(model, path, missing="error", mmap="never")
        final = sum(tensor.nbytes for tensor in model.state_dict().values())
        return model, {
            "final": final,
            "grown": resident_bytes() - before,
            "peak": highest_resident_bytes() - before,
        }
"""


def measured(scheme: str, path: Path | None = None) -> dict[str, int]:
    found = in_child(
        PRELUDE,
        f"""
        path = {None if path is None else str(path)!r}
        small = None
        if path is not None:
            small = path + ".small"
            safetensors.torch.save_file(build_real(64), small)
        run({scheme}, 64, 2, small)
        model, figures = run({scheme}, {SIZE}, {LAYERS}, path)
        print(json.dumps(figures))
    """.replace("build_real(64)", "{f'{i}.weight': torch.randn(64, 64) for i in range(2)}"),
    )
    assert sees_the_memory(found)
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "model.safetensors"
    in_child(
        PRELUDE,
        f"""
        state = {{f"{{i}}.weight": torch.randn({SIZE}, {SIZE}) for i in range({LAYERS})}}
        safetensors.torch.save_file(state, {str(path)!r})
        print("{{}}")
    """,
    )
    return path


@pytest.mark.parametrize("scheme", ['"nf4"', '"int8"'])
def test_from_recipes(scheme: str) -> None:
    found = measured(scheme)
    assert found["final"] < LAYERS * FLOAT_LAYER / 3.9
    assert found["peak"] <= found["final"] + BUDGET


@pytest.mark.parametrize("scheme", ['"nf4"', '"int8"'])
def test_from_a_checkpoint(scheme: str, checkpoint: Path) -> None:
    found = measured(scheme, checkpoint)
    assert found["peak"] <= found["final"] + BUDGET


def test_scratch_leaves_no_holes_between_the_tensors_that_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A heap that keeps all it ever had: what glibc comes to by itself, in a larger model.
    monkeypatch.setenv(
        "GLIBC_TUNABLES",
        "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824",
    )
    found = in_child(
        PRELUDE,
        """
        def ones(size, layers):
            with dormant.lazy_init():
                model = torch.nn.Linear(1, 1, bias=False)
                model.weight = torch.nn.Parameter(torch.ones(size, size))
            return model

        build = ones
        run("nf4", 64, 1)
        run("nf4", 512, 1)
        model, figures = run("nf4", 12288, 1)
        print(json.dumps(figures))
    """,
    )
    scales = 4 * 12288 * 12288 // 64  # in float32, until they are quantized, too
    assert sees_the_memory(found)
    assert found["grown"] <= found["final"] + scales // 4


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_saved_without_ever_being_in_memory(scheme: str, tmp_path: Path) -> None:
    found = in_child(
        PRELUDE,
        f"""
        def save(size, layers):
            model = build(size, layers)
            dormant.quantize(model, "{scheme}", skip=())
            before = resident_bytes()
            dormant.save(model, {str(tmp_path / "model.safetensors")!r})
            assert dormant.is_lazy(model[0].weight)
            return highest_resident_bytes() - before

        save(64, 2)
        peak = save({SIZE}, {2 * LAYERS})
        print(json.dumps({{"peak": peak}}))
    """,
    )
    nbytes = (tmp_path / "model.safetensors").stat().st_size
    assert nbytes > 2 * LAYERS * FLOAT_LAYER / 8
    # Statistics of a layer, and tiles of however many threads: less than a layer in int8.
    assert found["peak"] < FLOAT_LAYER / 4


def test_layer_by_layer_from_recipes() -> None:
    found = measured("half")
    assert found["final"] == LAYERS * FLOAT_LAYER / 2
    assert found["peak"] <= found["final"] + FLOAT_LAYER + BUDGET


def test_layer_by_layer_from_a_checkpoint(checkpoint: Path) -> None:
    found = measured("half", checkpoint)
    assert found["peak"] <= found["final"] + FLOAT_LAYER + BUDGET


EXPERTS = """
    from transformers import MixtralConfig, MixtralForCausalLM

    def mixtral(size):
        config = MixtralConfig(
            hidden_size=size, intermediate_size=2 * size, num_hidden_layers=2, vocab_size=64,
            num_attention_heads=4, num_key_value_heads=4, num_local_experts=8,
        )
        with dormant.lazy_init():
            return MixtralForCausalLM(config)

    def run_experts(size, path):
        model = mixtral(size)
        report = dormant.quantize(model, "nf4")
        assert report.share > 0.9
        before = resident_bytes()
        if path is None:
            dormant.materialize(model)
        else:
            dormant.load(model, path, missing="error", mmap="never")
        final = sum(tensor.nbytes for tensor in model.state_dict().values())
        return {"final": final, "peak": highest_resident_bytes() - before}
"""
EXPERT_STACK = 4 * 8 * 2 * 2048 * 1024  # bytes of gate_up_proj of one layer in float32


def test_stacked_experts_from_recipes() -> None:
    found = in_child(
        PRELUDE + EXPERTS,
        "run_experts(64, None); print(json.dumps(run_experts(1024, None)))",
    )
    assert found["final"] > 2 * 1.5 * EXPERT_STACK / 8
    assert found["peak"] <= found["final"] + BUDGET


def test_stacked_experts_from_a_file_for_each_expert(tmp_path: Path) -> None:
    in_child(
        PRELUDE + EXPERTS,
        f"""
        for size in (64, 1024):
            dormant.save(mixtral(size), {str(tmp_path)!r} + f"/{{size}}")
        print("{{}}")
    """,
    )
    found = in_child(
        PRELUDE + EXPERTS,
        f"""
        run_experts(64, {str(tmp_path / "64")!r})
        print(json.dumps(run_experts(1024, {str(tmp_path / "1024")!r})))
    """,
    )
    assert found["peak"] <= found["final"] + BUDGET
