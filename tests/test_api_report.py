"""`Report` and `Summary`: the numbers, and how they print."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import dormant
from dormant.reporting.memory import PeakMemory, resident_bytes
from dormant.text.table import format_bytes, format_table


class Tied(nn.Module):
    """A tied weight of 800 bytes, a bias of 40, a real buffer of 8, views of one table of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 20)
        self.head = nn.Linear(20, 10)
        self.head.weight = self.embedding.weight
        self.register_buffer("real", torch.tensor([1.0, 2.0]))
        table = torch.arange(16, dtype=torch.float32)
        self.left, self.right = table[:8], table[8:]


@pytest.fixture
def model() -> Tied:
    with dormant.lazy_init():
        return Tied()


def test_a_report_lists_each_distinct_tensor_once_with_all_its_names(model: Tied) -> None:
    report = dormant.materialize(model)
    names = sorted(tensor.names for tensor in report.tensors)
    assert names == [
        ("embedding.weight", "head.weight"),
        ("head.bias",),
        ("left",),
        ("real",),
        ("right",),
    ]


def test_a_report_counts_storages_and_bytes_once(model: Tied) -> None:
    report = dormant.materialize(model)
    assert (report.storages, report.nbytes, report.lazy_nbytes) == (4, 912, 904)
    assert report.lazy_rate == 904 / 912
    assert report.count("initialized") == 4
    assert report.count("real") == 1
    by_name = {tensor.names[0]: tensor for tensor in report.tensors}
    assert by_name["left"].storage == by_name["right"].storage
    assert by_name["left"].nbytes == 32
    assert by_name["embedding.weight"].shape == (10, 20)
    assert by_name["embedding.weight"].dtype == "float32"
    assert by_name["embedding.weight"].operators > 0
    assert by_name["real"].operators == 0


# In a process of its own: where other tests freed memory, nothing would grow.
_MEASURED = """
import dormant
from dormant.reporting.memory import resident_bytes
from torch import nn

with dormant.lazy_init():
    layer = nn.Linear(2048, 2048, bias=False)
before = resident_bytes()
report = dormant.materialize(layer)
assert report.seconds > 0, report.seconds
assert report.peak_memory >= before + layer.weight.nbytes // 2, (before, report.peak_memory)
"""


def test_a_report_measures_time_and_memory() -> None:
    subprocess.run([sys.executable, "-c", _MEASURED], check=True, timeout=120)


def test_a_report_names_the_operators_that_read_values() -> None:
    with dormant.lazy_init():
        layer = nn.Linear(16, 16)
        layer.weight.sum().item()
        report = dormant.materialize(layer)
    # The sum, and the weight that it is of.
    assert report.value_reads == {"aten::_local_scalar_dense": 4 + 16 * 16 * 4}
    assert "aten::_local_scalar_dense (1.0 KiB)" in str(report)


def test_a_report_is_plain_data(model: Tied) -> None:
    report = dormant.materialize(model)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["nbytes"] == 912
    assert data["lazy_rate"] == report.lazy_rate
    assert len(data["tensors"]) == 5


def test_a_report_prints_as_a_short_table(model: Tied) -> None:
    text = str(dormant.materialize(model))
    assert "initialized" in text
    assert "real" in text.split()
    assert "5 tensors in 4 storages, 912 B, 99.1% of it lazy before" in text
    assert len(text.splitlines()) < 11  # what draws random numbers takes up to three


def test_one_of_a_thing_is_no_plural() -> None:
    with dormant.lazy_init():
        model = nn.LayerNorm(4, bias=False)
    assert "1 tensor, 1 lazy" in str(dormant.summary(model))
    text = str(dormant.materialize(model))
    assert "1 tensor in 1 storage, 16 B, 100.0% of it lazy before\n1 operator, " in text


def test_an_empty_model_has_a_report() -> None:
    report = dormant.materialize(nn.Identity())
    assert (report.tensors, report.nbytes, report.lazy_rate) == ([], 0, 1.0)
    assert "0 tensors" in str(report)


def test_a_summary_tells_bytes_now_and_after(model: Tied) -> None:
    before = dormant.summary(model)
    assert (before.bytes_now, before.bytes_after) == (8, 912)
    assert before.lazy_rate == pytest.approx(904 / 912)
    assert [tensor.lazy for tensor in before.tensors].count(True) == 4
    assert dormant.is_lazy(model.embedding.weight), "a summary must not materialize"
    dormant.materialize(model)
    after = dormant.summary(model)
    assert (after.bytes_now, after.bytes_after, after.lazy_rate) == (912, 912, 0.0)


def test_a_summary_shows_tied_names_once_with_their_aliases(model: Tied) -> None:
    text = str(dormant.summary(model))
    assert text.count("embedding.weight (= head.weight)") == 1
    assert "10x20" in text
    assert "8 B now, 912 B once materialized" in text


def test_a_summary_takes_tensors_and_state_dicts_and_refuses_others(model: Tied) -> None:
    assert dormant.summary(model.head.bias).bytes_after == 40
    assert dormant.summary(model.state_dict()).bytes_after == 848
    with pytest.raises(TypeError, match="got int"):
        dormant.summary(3)  # type: ignore[arg-type]
    assert json.dumps(dormant.summary(model).to_dict())


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 << 30, "3.0 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_bytes_are_printed_in_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_a_report_prints_where_only_ascii_can_be_written(
    model: Tied, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    print(dormant.summary(model), flush=True)
    assert b"\n-----" in written.getvalue()


def test_the_middle_of_a_long_table_is_left_out() -> None:
    lines = format_table(("name", "n"), [(f"row {i}", str(i)) for i in range(100)], []).splitlines()
    assert "row 0 " in lines[2]
    assert "... 60 more ..." in lines[22]
    assert "row 99" in lines[-1]
    assert len(lines) == 43


def test_a_long_name_is_cut_in_the_middle_and_words_are_not_broken() -> None:
    name = "model." + "x" * 400 + ".q_proj.weight"
    total = "a total of " + "several words " * 20
    lines = format_table(("name", "n"), [(name, "1")], [total]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("model.xxx")
    assert "...xxx" in lines[-1]
    assert lines[-1].endswith(".q_proj.weight  1")
    assert " ".join(" ".join(lines).split()).startswith(total.strip())


def test_repeated_layers_share_a_line() -> None:
    with dormant.lazy_init():
        layers = [nn.Linear(1024, 1024) for _ in range(32)]
        model = nn.Sequential(nn.Embedding(10, 8), nn.ModuleDict({"layers": nn.ModuleList(layers)}))
    text = str(dormant.summary(model))
    line = next(line for line in text.splitlines() if line.startswith("1.layers.{0...31}.weight"))
    assert line.split()[1:] == ["1024x1024", "float32", "lazy", "32", "x", "4.0", "MiB"]
    assert "65 tensors, 65 lazy" in text.splitlines()[0]
    assert len(text.splitlines()) < 10
    assert len(repr(dormant.summary(model)).splitlines()) == 1


def test_peak_memory_sees_what_was_freed_again() -> None:
    peak = PeakMemory()
    start = resident_bytes()
    assert start is not None
    block = torch.ones(128 << 20)  # more than any freed memory that could be used again
    peak.sample()
    del block
    result = peak.result()
    assert result is not None
    assert result >= start + (24 << 20)


def test_a_report_and_a_summary_are_one_line_where_they_are_shown_inside_others(
    model: Tied,
) -> None:
    assert repr(dormant.summary(model)) == (
        "Summary(5 tensors, 4 lazy (99.1% of the bytes); 8 B now, 912 B once materialized)"
    )
    report = dormant.materialize(model)
    text = repr(report)
    assert text.startswith("Report(5 tensors, 912 B: 4 initialized, 1 real; ")
    assert text.endswith(" s)")
    assert "\n" not in text
    assert repr(dormant.materialize(nn.Identity())).startswith("Report(0 tensors, 0 B; ")


def test_an_unknown_origin_is_refused_with_the_nearest_one(model: Tied) -> None:
    report = dormant.materialize(model)
    with pytest.raises(ValueError, match=r"origin 'initialised', .* Did you mean 'initialized'"):
        report.count("initialised")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"way 'tile', expected one of 'tiles', .* 'tiles'\?"):
        report.count_way("tile")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'real', 'meta'\.$"):
        report.count("xyzzy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="origin None"):
        report.count(None)  # type: ignore[arg-type]


def test_statistics_of_quantized_weights_are_quantized() -> None:
    with dormant.lazy_init():
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    weights = {name: t.clone() for name, t in nn.Linear(64, 64).state_dict().items()}
    state = {f"{place}.{name}": tensor for place in (0, 1) for name, tensor in weights.items()}
    dormant.quantize(model, dormant.FourBit(kind="nf4", nested=True), skip=())
    report = dormant.load(model, state)
    origins = {tensor.names[0]: tensor.origin for tensor in report.tensors}
    codes = {name: origin for name, origin in origins.items() if name.endswith(("weight", "bias"))}
    assert set(codes.values()) == {"checkpoint"}
    statistics = [
        origin
        for name, origin in origins.items()
        if "absmax" in name or name.endswith("quant_state.offset")
    ]
    assert statistics
    assert set(statistics) == {"quantized"}


def test_of_initialized_quantized_weights_only_the_statistics_are_quantized(
    tmp_path: Path,
) -> None:
    with dormant.lazy_init():
        model = nn.Linear(64, 64, bias=False)
    dormant.quantize(model, "int8", skip=())
    held = [tensor for tensor in dormant.summary(model).tensors if tensor.lazy]
    assert len(held) == 2
    saved = dormant.save(model, tmp_path)
    assert (saved.count("quantized"), saved.count("initialized")) == (1, 1)
    report = dormant.materialize(model)
    assert (report.count("quantized"), report.count("initialized")) == (1, 1)


def test_what_only_hooks_hold_of_a_parameter_is_not_listed_beside_it() -> None:
    with dormant.lazy_init():
        model = nn.Sequential(nn.Linear(4, 4))
        own = torch.ones(3)

    class State:
        def __init__(self) -> None:
            self.flat = model[0].weight.detach().view(-1)
            self.own = own

        def __call__(self, *args: object) -> None: ...

    model.register_forward_hook(State())
    found = dormant.summary(model)
    assert [tensor.names for tensor in found.tensors][:2] == [("0.weight",), ("0.bias",)]
    assert len(found.tensors) == 3  # what nothing else holds is listed
    assert sum(tensor.nbytes for tensor in found.tensors) == found.bytes_after == 64 + 16 + 12
    dormant.materialize(model)
    assert not dormant.is_lazy(model)


# Random numbers


def test_nothing_is_said_of_random_numbers_if_none_are_drawn(tmp_path: Path) -> None:
    def check(described: dormant.Summary | dormant.Report, *, drawn: bool) -> None:
        assert bool(described.random_path) == drawn
        assert ("random numbers: " in str(described)) == drawn

    for build, drawn in ((partial(nn.LayerNorm, 8), False), (partial(nn.Linear, 8, 8), True)):
        with dormant.lazy_init():
            model = build()
        check(dormant.summary(model), drawn=drawn)
        check(dormant.save(model, tmp_path / "model.safetensors"), drawn=drawn)
        check(dormant.materialize(model), drawn=drawn)
        check(dormant.summary(model), drawn=False)  # nothing is lazy any more
        with dormant.lazy_init():
            loaded = build()
        check(dormant.load(loaded, tmp_path / "model.safetensors"), drawn=False)
    with dormant.lazy_init():
        model = nn.Linear(8, 8)
    check(dormant.materialize(model, values="empty"), drawn=False)
