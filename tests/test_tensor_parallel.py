"""Tensor-parallel sets: merged, split and divided anew as eager PyTorch would, without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch

import dormant
from child import in_child
from compare import assert_same_bits
from dormant.tensor_parallel import (
    COLUMN,
    LLAMA,
    LLAMA3,
    REPLICATED,
    Sharded,
    apply_diffs,
    merge,
    reshard,
    split,
)
from dormant.tensor_parallel.rules import match
from pages import run_page

State = dict[str, torch.Tensor]

COUNTS = [1, 2, 3, 4, 8]

# The dimension along which fairscale's layers divide each parameter of a LLaMA, None where every
# rank holds it whole: ColumnParallelLinear 0, RowParallelLinear 1, ParallelEmbedding 1.
DIVIDED: dict[str, int | None] = {
    "tok_embeddings.weight": 1,
    "layers.0.attention.wq.weight": 0,
    "layers.0.attention.wk.weight": 0,
    "layers.0.attention.wv.weight": 0,
    "layers.0.attention.wo.weight": 1,
    "layers.0.feed_forward.w1.weight": 0,
    "layers.0.feed_forward.w2.weight": 1,
    "layers.0.feed_forward.w3.weight": 0,
    "layers.0.attention_norm.weight": None,
    "layers.0.ffn_norm.weight": None,
    "norm.weight": None,
    "output.weight": 0,
    "rope.freqs": None,
}


def llama_state(width: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> State:
    """Random tensors of the names and shapes of LLaMA 2."""
    sizes = {
        "tok_embeddings.weight": (vocabulary, width),
        **{f"layers.0.attention.w{kind}.weight": (width, width) for kind in "qkvo"},
        "layers.0.feed_forward.w1.weight": (hidden, width),
        "layers.0.feed_forward.w2.weight": (width, hidden),
        "layers.0.feed_forward.w3.weight": (hidden, width),
        "layers.0.attention_norm.weight": (width,),
        "layers.0.ffn_norm.weight": (width,),
        "norm.weight": (width,),
        "output.weight": (vocabulary, width),
        "rope.freqs": (8,),
    }
    return {name: torch.randn(size, dtype=dtype) for name, size in sizes.items()}


def even(dtype: torch.dtype = torch.float32) -> State:
    return llama_state(48, 96, 72, dtype)  # every count divides these


def uneven(dtype: torch.dtype = torch.float32) -> State:
    return llama_state(22, 13, 7, dtype)  # 8 parts of 7 entries: one gets none


def eager_and_lazy(build: Callable[[], State]) -> tuple[State, State]:
    torch.manual_seed(6)
    eager = build()
    torch.manual_seed(6)
    with dormant.lazy_init():
        return eager, build()


def divide(
    state: State, count: int, cut: Callable[..., Sequence[torch.Tensor]] = torch.tensor_split
) -> list[State]:
    """What each rank holds, by PyTorch's own functions."""
    parts: list[State] = [{} for _ in range(count)]
    for name, tensor in state.items():
        dim = DIVIDED[name]
        pieces = [tensor] * count if dim is None else cut(tensor, count, dim)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def assert_same_states(expected: Sequence[State], got: Sequence[State], where: str = "") -> None:
    assert len(expected) == len(got)
    for rank, (one, other) in enumerate(zip(expected, got, strict=True)):
        assert list(one) == list(other), where
        for name, tensor in one.items():
            assert_same_bits(tensor, other[name], f"{where} part {rank}: {name}")


def assert_all_lazy(states: Sequence[State]) -> None:
    assert [name for state in states for name, t in state.items() if not dormant.is_lazy(t)] == []


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("build", [even, uneven])
def test_merging_undoes_eager_splitting(build: Callable[[], State], count: int) -> None:
    whole = build()
    assert_same_states([whole], [merge(divide(whole, count), rules=LLAMA)])


@pytest.mark.parametrize("count", COUNTS)
def test_equal_parts_are_those_of_chunk_which_fairscale_takes(count: int) -> None:
    whole = even()
    assert_same_states(divide(whole, count, torch.chunk), split(whole, count))


@pytest.mark.parametrize("count", COUNTS)
def test_unequal_parts_are_those_of_tensor_split(count: int) -> None:
    whole = uneven()
    assert_same_states(divide(whole, count), split(whole, count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", [even, uneven])
@pytest.mark.parametrize("before", COUNTS)
@pytest.mark.parametrize("after", COUNTS)
def test_any_number_of_parts_becomes_any_other(
    before: int, after: int, build: Callable[[torch.dtype], State], dtype: torch.dtype
) -> None:
    eager, lazy = eager_and_lazy(lambda: build(dtype))
    # The parts too are recorded, so a lazy set is divided anew and not a lazy whole.
    parts, lazy_parts = divide(eager, before), divide(lazy, before)
    assert_all_lazy(lazy_parts)
    expected = divide(eager, after)
    assert_same_states(expected, reshard(parts, after, rules=LLAMA), "real")
    got = reshard(lazy_parts, after, rules=LLAMA)
    assert_all_lazy(got)
    assert_all_lazy(lazy_parts)
    for state in reversed(got):  # parts come to life in any order
        dormant.materialize(state)
    assert_same_states(expected, got, "lazy")


def test_lazy_parts_merge_and_split_lazily() -> None:
    eager, lazy = eager_and_lazy(uneven)
    parts = split(lazy, 3)
    assert_all_lazy(parts)
    whole = merge(parts, rules=LLAMA)
    assert_all_lazy([whole])
    dormant.materialize(whole)
    assert_same_states([eager], [whole])
    assert all(dormant.is_lazy(part["output.weight"]) for part in parts)


def test_a_part_is_contiguous_and_owns_no_more_than_its_elements() -> None:
    whole = uneven()
    parts = split(whole, 3)
    assert [part.keys() for part in parts] == [whole.keys()] * 3
    for part in parts:
        for name, tensor in part.items():
            assert tensor.is_contiguous(), name
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_what_is_not_cut_is_the_same_tensor() -> None:
    whole = even()
    parts = split(whole, 2)
    assert parts[0]["norm.weight"] is parts[1]["norm.weight"] is whole["norm.weight"]
    again = reshard(parts, 2)
    assert again[1]["output.weight"] is parts[1]["output.weight"]
    assert merge([whole])["output.weight"] is whole["output.weight"]


def test_the_inputs_stay_as_they_were() -> None:
    parts = divide(even(), 2)
    copies = [{name: tensor.clone() for name, tensor in part.items()} for part in parts]
    reshard(parts, 3)
    assert_same_states(copies, parts)


def test_parts_of_parameters_need_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 2))
    parts = split({"output.weight": weight}, 2)
    assert [part["output.weight"].grad_fn for part in parts] == [None, None]


def test_parts_may_be_held_in_any_mapping() -> None:
    class Fresh(dict[str, torch.Tensor]):
        """Makes a tensor for each access, as a checkpoint does."""

        def __getitem__(self, name: str) -> torch.Tensor:
            return super().__getitem__(name).view_as(super().__getitem__(name))

    whole = even()
    parts = [Fresh(part) for part in divide(whole, 2)]
    assert_same_states([whole], [merge(parts)])


# Rules


@pytest.mark.parametrize("prefix", ["", "llma.", "model.llma."])
def test_the_rules_of_llama_divide_as_its_layers_do(prefix: str) -> None:
    for name, dim in DIVIDED.items():
        expected = REPLICATED if dim is None else Sharded(dim)
        assert match(LLAMA, prefix + name) == expected, name


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        # LLaMA2-Accessory's classes: LoraColumnParallelLinear has a whole lora_a and a
        # ColumnParallelLinear lora_b, LoraRowParallelLinear a RowParallelLinear lora_a and a whole
        # lora_b; a row-parallel layer's bias is whole.
        ("llma.layers.3.attention.wq.bias", 0),
        ("llma.layers.3.attention.wo.bias", None),
        ("llma.layers.3.feed_forward.w1.bias", 0),
        ("llma.layers.3.feed_forward.w2.bias", None),
        ("llma.layers.3.attention.wv.lora_a.weight", None),
        ("llma.layers.3.attention.wv.lora_b.weight", 0),
        ("llma.layers.3.feed_forward.w2.lora_a.weight", 1),
        ("llma.layers.3.feed_forward.w2.lora_b.weight", None),
        ("llma.prefix_gate", 1),
        ("llma.prefix", None),
        ("llma.clip.visual.transformer.resblocks.0.ln_1.weight", None),
        ("llma.qformer.language_model.decoder.layers.0.wq.weight", None),
        ("llma.visual_blocks.0.attn.qkv.bias", None),
    ],
)
def test_biases_adapters_and_encoders_have_their_rules(name: str, dim: int | None) -> None:
    expected = REPLICATED if dim is None else Sharded(dim)
    assert match(LLAMA, name) == expected


def test_a_set_of_llama_3_is_known_by_its_shapes() -> None:
    whole = even()
    parts = split(whole, 4, rules=LLAMA3)
    assert parts[0]["tok_embeddings.weight"].shape == (18, 48)
    assert_same_states([whole], [merge(parts)])
    assert_same_states(split(whole, 3, rules=LLAMA3), reshard(parts, 3))


def test_the_first_pattern_that_fits_decides() -> None:
    rules = {"wq.weight": REPLICATED, "*": COLUMN}
    assert match(rules, "layers.0.wq.weight") == REPLICATED
    assert match(rules, "wq.weight") == REPLICATED
    assert match(rules, "layers.0.xwq.weight") == COLUMN
    assert match({"wq": COLUMN}, "layers.0.wq.weight") is None


def test_parts_keep_whole_heads_where_a_unit_is_given() -> None:
    whole = {"wq.weight": torch.randn(7 * 4, 5)}  # 7 heads of 4
    rules = {"wq.weight": Sharded(0, unit=4)}
    parts = split(whole, 3, rules=rules)
    assert [part["wq.weight"].shape[0] for part in parts] == [12, 8, 8]
    assert_same_states([whole], [merge(parts, rules=rules)])
    with pytest.raises(ValueError, match="dimension 0 has 28 indices, expected a multiple of 5"):
        split(whole, 3, rules={"*": Sharded(0, unit=5)})


def stacked(parts: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Megatron's gated layers: each part holds its run of the gate, then its run of the rest."""
    halves = [part.chunk(2) for part in parts]
    gate, up = (torch.cat(side).chunk(count) for side in zip(*halves, strict=True))
    return [torch.cat(pair) for pair in zip(gate, up, strict=True)]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_function_may_be_the_rule(lazy: bool) -> None:
    rules = {"dense_h_to_4h.weight": stacked}
    name = "layers.0.mlp.dense_h_to_4h.weight"
    eager, recorded = eager_and_lazy(lambda: {name: torch.randn(24, 5)})
    gate, up = eager[name].chunk(2)
    expected = [
        {name: torch.cat([one, other])}
        for one, other in zip(gate.chunk(4), up.chunk(4), strict=True)
    ]
    parts = split(recorded if lazy else eager, 4, rules=rules)
    whole = merge(parts, rules=rules)
    assert dormant.is_lazy(whole[name]) is lazy
    dormant.materialize([whole, *parts])
    assert_same_states(expected, parts)
    assert_same_states([eager], [whole])


def test_a_function_must_give_as_many_tensors_as_are_wanted() -> None:
    with pytest.raises(ValueError, match=r"'a' returned .*'Tensor', 'Tensor'.*expected 3 tensors"):
        split({"a": torch.zeros(2)}, 3, rules={"a": lambda parts, count: [parts[0]] * 2})


# What is refused


def test_names_that_no_rule_fits_are_all_listed() -> None:
    state = {"output.weight": torch.zeros(2, 2), "a": torch.zeros(1), "b.c": torch.zeros(1)}
    with pytest.raises(KeyError) as caught:
        split(state, 2)
    assert "no rule matches 2 of 3 names: 'a', 'b.c'" in caught.value.args[0]
    assert len(split(state, 2, rules={**LLAMA, "*": REPLICATED})) == 2


def test_names_that_parts_lack_are_all_listed() -> None:
    parts = divide(even(), 3)
    del parts[0]["norm.weight"]
    del parts[1]["output.weight"], parts[2]["output.weight"]
    with pytest.raises(KeyError) as caught:
        merge(parts)
    text = caught.value.args[0]
    assert "2 of 13 names are missing" in text
    assert "'norm.weight' in part 0" in text
    assert "'output.weight' in parts 1, 2" in text


def test_tensors_that_do_not_fit_together_are_all_listed() -> None:
    parts = divide(even(), 2)
    parts[1]["output.weight"] = parts[1]["output.weight"].half()
    parts[1]["layers.0.attention.wo.weight"] = torch.zeros(47, 24)
    parts[1]["norm.weight"] = torch.zeros(49)
    with pytest.raises(ValueError, match="3 of 13 tensors do not match") as caught:
        merge(parts)
    text = str(caught.value)
    assert "'output.weight': part 1 has dtype torch.float16, part 0 has torch.float32" in text
    assert "'layers.0.attention.wo.weight': part 1 has shape (47, 24), part 0 has (48, 24)" in text
    assert "'norm.weight': part 1 has shape (49,), part 0 has (48,)" in text


def test_a_tensor_without_the_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\) has no dimension 1 to divide"):
        split({"wo.weight": torch.zeros(4)}, 2)
    with pytest.raises(ValueError, match=r"part 1 has shape \(4,\), part 0 has \(4, 2\)"):
        merge([{"wo.weight": torch.zeros(4, 2)}, {"wo.weight": torch.zeros(4)}])


def test_values_that_are_no_tensors_are_refused() -> None:
    parts = [{"model": {"output.weight": torch.zeros(1)}, "epoch": 3}] * 2
    with pytest.raises(ValueError, match="'model' in part 0: a dict; 'epoch' in part 0: a int"):
        merge(parts)  # type: ignore[arg-type]


def test_there_must_be_parts() -> None:
    with pytest.raises(ValueError, match="got no parts"):
        merge([])
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        split(even(), 0)


# Replicated tensors


def test_replicas_that_differ_are_refused_with_part_tensor_and_element() -> None:
    parts = divide(even(), 3)
    parts[2]["layers.0.ffn_norm.weight"][17] = 5
    parts[2]["layers.0.ffn_norm.weight"][20] = 6
    with pytest.raises(
        ValueError, match=r"merge: 'layers.0.ffn_norm.weight' .* part 2 element \(17,\) is 5.0"
    ):
        merge(parts)
    with pytest.raises(ValueError, match=r"reshard: 'layers.0.ffn_norm.weight'"):
        reshard(parts, 2)
    taken = merge(parts, check=False)["layers.0.ffn_norm.weight"]
    assert_same_bits(parts[0]["layers.0.ffn_norm.weight"], taken)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(0.0, -0.0, False), (float("nan"), float("nan"), True), (1.0, 1.0, True)],
)
def test_replicas_are_compared_by_their_bits(one: float, other: float, same: bool) -> None:
    parts = [{"norm.weight": torch.tensor([2.0, value])} for value in (one, other)]
    if same:
        merge(parts)
        return
    with pytest.raises(ValueError, match=r"part 1 element \(1,\) is -0.0, in part 0 it is 0.0"):
        merge(parts)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.int64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64],
    ids=str,
)
def test_replicas_of_any_dtype_are_compared(dtype: torch.dtype) -> None:
    same = torch.ones(3, 4).to(dtype)
    other = torch.ones(3, 4)
    other[1, 2] = 0
    merge([{"*": same}, {"*": same.clone()}], rules={"*": REPLICATED})
    with pytest.raises(ValueError, match=r"element \(1, 2\)"):
        merge([{"a": same}, {"a": other.to(dtype)}], rules={"*": REPLICATED})


def test_a_scalar_that_differs_is_found() -> None:
    parts = [{"a": torch.tensor(1)}, {"a": torch.tensor(2)}]
    with pytest.raises(ValueError, match=r"element \(\) is 2, in part 0 it is 1"):
        merge(parts, rules={"*": REPLICATED})


def test_lazy_replicas_are_compared_and_stay_lazy() -> None:
    def build(last: float) -> State:
        tensor = torch.zeros(5, 7)
        tensor[4, 6] = last
        return {"norm.weight": tensor.t()}

    with dormant.lazy_init():
        parts = [build(1), build(1), build(2)]
    assert dormant.is_lazy(merge(parts[:2])["norm.weight"])
    with pytest.raises(ValueError, match=r"part 2 element \(6, 4\) is 2.0, in part 0 it is 1.0"):
        merge(parts)
    assert_all_lazy(parts)


def test_a_difference_in_a_later_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dormant.tensor_parallel.replicas._BLOCK_BYTES", 64)
    parts = [{"norm.weight": torch.arange(1000.0)} for _ in range(2)]
    merge(parts)
    parts[1]["norm.weight"][991] = 0
    with pytest.raises(ValueError, match=r"element \(991,\) is 0.0, in part 0 it is 991.0"):
        merge(parts)


# Differences


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_differences_are_added_in_order_in_the_dtype_of_the_base(dtype: torch.dtype) -> None:
    def build() -> list[State]:
        base = {"a": torch.randn(300, 70).to(dtype), "b": torch.randn(9).to(dtype)}
        first = {"a": torch.randn(300, 70)}
        second = {"a": torch.randn(300, 70).half(), "new": torch.randn(4)}
        return [base, first, second, {"new": torch.randn(4)}]

    torch.manual_seed(6)
    base, *diffs = build()
    torch.manual_seed(6)
    with dormant.lazy_init():
        lazy_base, *lazy_diffs = build()
    a = (base["a"] + diffs[0]["a"].to(dtype)) + diffs[1]["a"].to(dtype)
    expected = {"a": a, "b": base["b"], "new": diffs[1]["new"] + diffs[2]["new"]}
    copy = base["a"].clone()
    assert_same_states([expected], [apply_diffs(base, diffs)], "real")
    assert_same_bits(copy, base["a"])

    got = apply_diffs(lazy_base, lazy_diffs)
    assert_all_lazy([got, lazy_base, *lazy_diffs])
    report = dormant.materialize(got)
    assert report.count_way("tiles") == 3  # the base and the differences never exist whole
    assert_same_states([expected], [got], "lazy")


def test_differences_of_other_shapes_are_all_listed() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(1)}
    diffs = [{"a": torch.zeros(1)}, {"b": torch.zeros(3)}]
    with pytest.raises(ValueError, match="2 tensors cannot be added") as caught:
        apply_diffs(base, diffs)
    assert r"'a' in difference 0: shape (1,), the model has (2,)" in str(caught.value)
    assert r"'b' in difference 1: shape (3,), the model has (1,)" in str(caught.value)


def test_differences_may_be_added_before_or_after_merging() -> None:
    whole, diff = even(torch.bfloat16), even(torch.bfloat16)
    parts = [
        apply_diffs(part, [change])
        for part, change in zip(divide(whole, 4), divide(diff, 4), strict=True)
    ]
    assert_same_states([apply_diffs(whole, [diff])], [merge(parts)])


# Files


def saved_parts(folder: Path, parts: Sequence[State]) -> list[Path]:
    """A set as LLaMA's own code saves it."""
    folder.mkdir()
    paths = [folder / f"consolidated.{rank:02}.pth" for rank in range(len(parts))]
    for part, path in zip(parts, paths, strict=True):
        torch.save(part, path)
    return paths


@pytest.mark.parametrize("count", COUNTS)
def test_parts_of_files_are_merged_and_divided_anew(count: int, tmp_path: Path) -> None:
    whole = uneven(torch.bfloat16)
    paths = saved_parts(tmp_path / "llama", divide(whole, 4))
    parts = [dormant.open_checkpoint(path) for path in paths]
    got = reshard(parts, count, rules=LLAMA)
    assert_all_lazy(got)
    dormant.materialize(got)
    assert_same_states(divide(whole, count), got)


def test_a_merged_set_is_saved_in_a_stream(tmp_path: Path) -> None:
    whole = even(torch.float16)
    paths = saved_parts(tmp_path / "llama", divide(whole, 2))
    merged = merge([dormant.open_checkpoint(path) for path in paths])
    dormant.save(merged, tmp_path / "whole.safetensors")
    assert_all_lazy([merged])
    got = safetensors.torch.load_file(tmp_path / "whole.safetensors")
    assert_same_states([whole], [{name: got[name] for name in whole}])


def test_the_document_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("tensor_parallel.md")
    whole = names["state"]
    assert_same_states([divide(whole, 3)[1]], [names["mine"]])
    got = safetensors.torch.load_file("whole.safetensors")
    assert_same_states([whole], [{name: got[name] for name in whole}])
    heads = [
        part["layers.0.attention.wq.weight"].shape[0] for part in names["parts_of_whole_heads"]
    ]
    assert heads == [24, 12, 12]
    first = names["two"][0]["mlp.dense_h_to_4h.weight"]
    assert first.flatten().tolist() == [0, 1, 2, 6, 7, 8]
    # What is replicated came to life with "mine", whose tensor it is.
    for name in whole:
        dim = DIVIDED[name]
        assert dormant.is_lazy(names["whole"][name]) == (dim is not None), name
        assert dormant.is_lazy(names["tuned"][name]) == (dim is not None), name
    dormant.materialize(names["tuned"])
    assert_same_bits(whole["norm.weight"] + 0.5, names["tuned"]["norm.weight"])


# Cost


def measured_in_child(code: str) -> dict[str, int]:
    """Runs `code` in a new process and returns what it prints as JSON."""
    prelude = """
        import json, torch, dormant
        from dormant import tensor_parallel
        from dormant.reporting.memory import highest_resident_bytes, resident_bytes
        MIB = 1 << 20
        # What a process needs once is not the tensors' own: the code itself, the threads.
        with dormant.lazy_init():
            parts = [{"output.weight": torch.randn(999, 100)} for _ in range(2)]
        dormant.materialize(tensor_parallel.merge(parts)["output.weight"].to(torch.bfloat16))
    """
    return in_child(prelude, code)


@pytest.mark.parametrize("name", ["output.weight", "wo.weight"])
def test_a_part_costs_its_own_bytes(name: str) -> None:
    found = measured_in_child(f"""
        with dormant.lazy_init():
            parts = [{{"{name}": torch.randn(8192, 4096)}} for _ in range(4)]
        part = tensor_parallel.reshard(parts, 16)[5]["{name}"]
        before = resident_bytes()
        dormant.materialize(part)
        print(json.dumps({{"part": part.nbytes, "peak": highest_resident_bytes() - before}}))
    """)
    assert found["part"] == 32 << 20  # of 512 MiB
    assert found["part"] - (1 << 20) <= found["peak"] <= found["part"] + (48 << 20)


def characters_read() -> int:
    """Bytes that read calls have given this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count reads")
@pytest.mark.parametrize(("name", "mapped"), [("output.weight", True), ("wo.weight", False)])
def test_a_part_reads_its_own_bytes_of_the_files(name: str, mapped: bool, tmp_path: Path) -> None:
    size = (512, 4096)  # 8 MiB; a row of a part is 16 KiB
    paths = saved_parts(tmp_path / "llama", [{name: torch.randn(size)} for _ in range(4)])
    parts = [dormant.open_checkpoint(path) for path in paths]
    wanted = reshard(parts, 8)[3]
    part = wanted[name]
    before = characters_read()
    dormant.materialize(part, mmap="always")
    read = characters_read() - before
    assert part.nbytes == 4 << 20
    # What lies in one piece in one file is shown in place, without a read.
    copied = 0 if mapped else part.nbytes
    assert copied <= read <= copied + (64 << 10)


def test_comparing_large_replicas_takes_little_memory() -> None:
    found = measured_in_child("""
        def compare(nbytes):
            with dormant.lazy_init():
                parts = [{"norm.weight": torch.ones(nbytes // 4)} for _ in range(2)]
            tensor_parallel.merge(parts)

        compare(32 * MIB)  # what comparing needs once: code, and memory that the allocator keeps
        before = resident_bytes()
        compare(256 * MIB)
        print(json.dumps({"peak": highest_resident_bytes() - before}))
    """)
    assert found["peak"] <= 48 << 20
