"""What open_checkpoint finds among encoded tensors, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoded import (
    FP8,
    MXFP4,
    assert_same,
    compressed,
    decoded_blocks,
    fp8_blocks,
    random_bytes,
    random_float8,
    random_scales,
    under,
    write,
)

import dormant


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {
        "embed.weight": torch.ones(5, 3),
        **under("a", fp8_blocks(256, 130)),
        **under("b", fp8_blocks(128, 128, seed=7)),
        "a.activation_scale": torch.ones(1),
        "norm.weight": torch.ones(3),
    }
    return write(tmp_path / "model", tensors, FP8)


def test_shows_plain_tensors_in_the_order_of_the_files(folder: Path) -> None:
    checkpoint = dormant.open_checkpoint(folder)
    raw = list(dormant.open_checkpoint(folder, decode=False))
    assert set(checkpoint) == {"a.weight", "b.weight", "embed.weight", "norm.weight"}
    assert list(checkpoint) == [name for name in raw if name in checkpoint]
    entry = checkpoint.entries["a.weight"]
    assert (entry.dtype, entry.shape, entry.nbytes) == (torch.bfloat16, (256, 130), 256 * 130 * 2)
    assert entry.encoding == "fp8 e4m3, blocks of 128x128"
    assert [part.dtype for part in entry.parts] == [torch.float8_e4m3fn, torch.float32]
    assert entry.file is None
    assert checkpoint.entries["norm.weight"].encoding == ""
    assert checkpoint.is_decoded
    assert not dormant.open_checkpoint(folder, decode=False).is_decoded


def test_shows_the_files_as_they_are(folder: Path) -> None:
    checkpoint = dormant.open_checkpoint(folder, decode=False)
    assert checkpoint.entries["a.weight"].dtype is torch.float8_e4m3fn
    assert "a.weight_scale_inv" in checkpoint
    assert "a.activation_scale" in checkpoint


@pytest.mark.parametrize("decode", ["bfloat16", 1, None])
def test_refuses_other_types_of_decode(folder: Path, decode: Any) -> None:
    with pytest.raises(TypeError, match=r"decode must be True, False or a torch\.dtype"):
        dormant.open_checkpoint(folder, decode=decode)


@pytest.mark.parametrize("decode", [torch.int32, torch.float8_e4m3fn])
def test_refuses_dtypes_that_nothing_is_computed_in(folder: Path, decode: torch.dtype) -> None:
    with pytest.raises(ValueError, match="a floating-point dtype of at least 16 bits"):
        dormant.open_checkpoint(folder, decode=decode)


def test_weights_and_scales_in_different_files_belong_together(tmp_path: Path) -> None:
    parts = fp8_blocks(256, 256)
    write(tmp_path, under("a", parts), FP8, files=2)
    expected = decoded_blocks(*parts.values(), 128, 128, torch.bfloat16)
    for path in (tmp_path, [tmp_path / "model-0.safetensors", tmp_path / "model-1.safetensors"]):
        tensor = dormant.open_checkpoint(path)["a.weight"]
        dormant.materialize(tensor)
        assert_same(tensor, expected)


def test_names_are_enough_where_they_are_clear(tmp_path: Path) -> None:
    tensors = {
        **under("a", fp8_blocks(256, 256)),
        "e.up_blocks": random_bytes(2, 4, 3, 16),
        "e.up_scales": random_bytes(2, 4, 3),
        "c.weight": random_float8(4, 6),
        "c.weight_scale": torch.ones(()),
    }
    checkpoint = dormant.open_checkpoint(write(tmp_path, tensors))
    assert {name: entry.shape for name, entry in checkpoint.entries.items()} == {
        "a.weight": (256, 256),
        "c.weight": (4, 6),
        "e.up": (2, 96, 4),
    }


def test_what_is_only_called_like_an_encoded_tensor_stays(tmp_path: Path) -> None:
    tensors = {
        "conv_blocks": torch.ones(3, 3),
        "conv_scales": torch.ones(3),
        "q.scale": torch.ones(3),
        "q.weight": torch.ones(3, 3),
        "codes.weight": random_bytes(3, 3).view(torch.int8),
        "codes.weight_scale": torch.ones(3),
        "plain.weight": random_float8(4, 4),
    }
    checkpoint = dormant.open_checkpoint(write(tmp_path, tensors))
    assert set(checkpoint) == set(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.weight_scale_inv": None}, r"'a\.weight_scale_inv', which is needed .* is missing"),
        ({"a.weight_scale_inv": torch.ones(3, 2)}, r"'a\.weight_scale_inv' has sizes \[3, 2\]"),
        ({"a.weight_scale_inv": torch.ones(0, 2)}, r"'a\.weight_scale_inv' has sizes \[0, 2\]"),
        ({"a.weight_scale_inv": torch.ones(7, 2, 2)}, r"got scales of sizes \[7, 2, 2\]"),
        ({"a.weight_scale_inv": torch.ones(2, 2).to(torch.int32)}, "got scales of Int"),
        ({"a.weight": torch.ones(256, 130)}, "has dtype Float, although 'a.weight_scale_inv'"),
        ({"a.weight": random_float8(256)}, r"has sizes \[256\], expected a matrix"),
    ],
)
def test_refuses_parts_that_do_not_fit(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors: dict[str, Any] = {**under("a", fp8_blocks(256, 130)), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    write(tmp_path, kept, FP8)
    with pytest.raises(ValueError, match=message) as error:
        dormant.open_checkpoint(tmp_path)
    assert "decode=False" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert set(dormant.open_checkpoint(tmp_path, decode=False)) == set(kept)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"x_blocks": random_bytes(2, 4, 3, 16), "x_scales": random_bytes(2, 4, 2)},
            r"got scales of sizes \[2, 4, 2\]",
        ),
        ({"x_blocks": random_bytes(2, 4, 3, 16)}, "'x_scales', which is needed"),
        (
            {"x_blocks": random_bytes(4, 3, 16), "x_scales": random_bytes(4, 3)},
            "expected uint8 .experts, rows, blocks, 16.",
        ),
        (
            {
                "x_blocks": random_bytes(2, 4, 3, 16),
                "x_scales": random_bytes(2, 4, 3),
                "x": torch.ones(2, 96, 4),
            },
            "'x' is in the checkpoint twice",
        ),
    ],
)
def test_refuses_experts_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dormant.open_checkpoint(write(tmp_path, tensors, MXFP4))


def test_warns_where_nothing_is_encoded_as_config_json_says(tmp_path: Path) -> None:
    write(tmp_path, {"a.weight": torch.ones(2, 2)}, FP8)
    with pytest.warns(UserWarning, match=r"no tensor has the encoding that .*config\.json states"):
        assert not dormant.open_checkpoint(tmp_path).is_decoded


def test_modules_that_are_not_converted_stay(tmp_path: Path) -> None:
    tensors = {**under("a", fp8_blocks(128, 128)), "model.head.weight": random_float8(4, 4)}
    write(tmp_path, tensors, {**FP8, "modules_to_not_convert": [r"model\.he.d"]})
    checkpoint = dormant.open_checkpoint(tmp_path)
    assert checkpoint.entries["model.head.weight"].dtype is torch.float8_e4m3fn
    write(tmp_path, tensors, FP8)
    with pytest.raises(ValueError, match=r"'model\.head\.weight_scale_inv'"):
        dormant.open_checkpoint(tmp_path)


def test_groups_of_compressed_tensors_are_chosen_by_name(tmp_path: Path) -> None:
    quantization = compressed("float-quantized", ignore=("re:.*head",), strategy="channel")
    quantization["config_groups"]["group_1"] = {
        "targets": ["re:.*experts.*"],
        "weights": {
            "num_bits": 8,
            "type": "float",
            "strategy": "block",
            "block_structure": [64, 32],
        },
    }
    parts = {"weight": random_float8(96, 96), "weight_scale": random_scales(2, 3)}
    tensors = {
        **under("layer.experts.0", parts),
        "layer.up.weight": random_float8(8, 8),
        "layer.up.weight_scale": random_scales(8, 1),
        "layer.up.input_scale": torch.ones(1),
        "head.weight": random_float8(2, 2),
    }
    checkpoint = dormant.open_checkpoint(write(tmp_path, tensors, quantization))
    assert set(checkpoint) == {"head.weight", "layer.experts.0.weight", "layer.up.weight"}
    tensor = checkpoint["layer.experts.0.weight"]
    dormant.materialize(tensor)
    expected = decoded_blocks(*parts.values(), 64, 32, torch.float32).to(torch.bfloat16)
    assert_same(tensor, expected)


def test_settings_that_contradict_the_tensors_are_refused(tmp_path: Path) -> None:
    tensors = {"a.weight": random_float8(8, 8), "a.weight_scale": random_scales(8, 1)}
    write(tmp_path, tensors, compressed("int-quantized", type="int", strategy="channel"))
    with pytest.raises(ValueError, match='states type "int" and num_bits 8'):
        dormant.open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        '{"quantization_config": 3}',
        '{"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}}',
        '{"quantization_config": {"quant_method": "fp8", "weight_block_size": "128"}}',
        '{"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": "head"}}',
        '{"quantization_config": {"quant_method": "compressed-tensors", "config_groups": []}}',
        '{"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": '
        '{"targets": ["re:("], "weights": {}}}}}',
        '{"quantization_config": ' + '{"a": ' * 200_000 + "1" + "}" * 200_001,
        '{"quantization_config": {"quant_method": "fp8", "weight_block_size": '
        + "[" * 200_000
        + "]" * 200_000
        + "}}",
    ],
    ids=range(8),
)
def test_settings_that_no_library_writes_are_refused(tmp_path: Path, config: str) -> None:
    write(tmp_path, {**under("a", fp8_blocks(128, 128)), "c.weight": random_float8(2, 2)})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config\.json"):
        dormant.open_checkpoint(tmp_path)


@pytest.mark.parametrize("config", ["", "[]", "{", '{"x": Infinity, "y": NaN}', "\xff"])
def test_a_config_json_that_says_nothing_of_it_is_no_obstacle(tmp_path: Path, config: str) -> None:
    write(tmp_path, under("a", fp8_blocks(128, 128)))
    (tmp_path / "config.json").write_text(config, encoding="latin-1")
    assert dormant.open_checkpoint(tmp_path).is_decoded


def test_unknown_methods_leave_everything_as_it_is(tmp_path: Path) -> None:
    tensors = under("a", fp8_blocks(128, 128))
    write(tmp_path, tensors, {"quant_method": "something_else"})
    assert set(dormant.open_checkpoint(tmp_path)) == set(tensors)


def test_the_language_model_of_several_may_have_the_settings(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.weight": random_float8(192, 128), "a.weight_scale_inv": random_scales(2, 1)},
        config={"text_config": {"quantization_config": {**FP8, "weight_block_size": [96, 128]}}},
        dtype=None,
    )
    entry = dormant.open_checkpoint(tmp_path).entries["a.weight"]
    assert entry.encoding == "fp8 e4m3, blocks of 96x128"
    assert entry.dtype is torch.float32  # that of the scales, as the library's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON object"),
        ("{}", "states quant_type as nothing"),
        ({"quant_type": "fp4"}, "states quant_type as 'fp4', expected nf4"),
        ({"blocksize": 0}, "states blocksize as 0"),
        ({"blocksize": 1 << 40}, "states blocksize"),
        ({"blocksize": 63}, "got blocks of 63"),
        ({"shape": [1 << 40, 1 << 40]}, "states shape"),
        ({"shape": [64, -1]}, "states shape"),
        ({"shape": [64, 127]}, "codes of four bits"),
        ({"dtype": "int8"}, 'states dtype as "int8"'),
        ({"nested_blocksize": 256}, "states nested_dtype as nothing"),
    ],
)
def test_hostile_states_of_bitsandbytes_are_refused(
    tmp_path: Path, text: str | dict[str, Any], message: str
) -> None:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 128]}
    said = text if isinstance(text, str) else json.dumps({**state, **text})
    write(
        tmp_path,
        {
            "a.weight": random_bytes(64 * 64, 1),
            "a.weight.absmax": random_scales(128),
            "a.weight.quant_map": torch.ones(16),
            "a.weight.quant_state.bitsandbytes__nf4": torch.tensor(
                list(said.encode()), dtype=torch.uint8
            ),
        },
    )
    with pytest.raises(ValueError, match=message):
        dormant.open_checkpoint(tmp_path)


@pytest.mark.parametrize("shape", [(0, 128), (128, 0), (0, 0)], ids=str)
def test_tensors_without_elements(tmp_path: Path, shape: tuple[int, int]) -> None:
    tensors = {
        "a.weight": random_float8(*shape),
        "a.weight_scale_inv": torch.ones(-(-shape[0] // 128), -(-shape[1] // 128)),
    }
    tensor = dormant.open_checkpoint(write(tmp_path, tensors, FP8))["a.weight"]
    dormant.materialize(tensor)
    assert tensor.shape == shape
