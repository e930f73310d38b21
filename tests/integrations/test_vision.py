"""diffusers, timm and torchvision: checkpoints read lazily equal what the libraries load."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from libraries import models
from same_model import assert_same, assert_same_output, both

import dormant
from compare import assert_same_bits
from dormant.integrations import diffusers as ours_diffusers
from dormant.integrations import timm as ours_timm
from dormant.integrations import torchvision as ours_torchvision

DIFFUSERS = {row.name: row for row in models("diffusers")}
PICTURE = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "UNet2DConditionModel",
        "AutoencoderKL",
        "DiTTransformer2DModel",
        "FluxTransformer2DModel",
        "SD3Transformer2DModel",
        "WanTransformer3DModel",  # keeps some modules in float32
        "ControlNetModel",
    ],
)
def test_models_of_diffusers(name: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    model: Any = DIFFUSERS[name].build()
    model.save_pretrained(tmp_path)
    kind = type(model)
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path, torch_dtype=dtype),
        lambda: ours_diffusers.from_pretrained(kind, tmp_path, dtype=dtype),
    )
    assert_same(expected, got, memory=False)
    lazy = ours_diffusers.from_pretrained(kind, tmp_path, dtype=dtype, materialize=False)
    report = dormant.materialize(lazy)
    assert report.lazy_rate > 0.99
    assert report.count("checkpoint") > 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("how", ["load", "materialize"])
@pytest.mark.parametrize("name", ["WanTransformer3DModel", "FluxTransformer2DModel"])
def test_load_keeps_in_float32_what_diffusers_keeps(
    name: str, how: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    source: Any = DIFFUSERS[name].build()
    source.save_pretrained(tmp_path)
    expected = type(source).from_pretrained(tmp_path, torch_dtype=dtype)
    dtypes = {tensor.dtype for tensor in expected.state_dict().values()}
    assert dtypes == ({dtype, torch.float32} if name.startswith("Wan") else {dtype})
    for lazily in (False, True):
        with dormant.lazy_init() if lazily else contextlib.nullcontext():
            model = DIFFUSERS[name].build()
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        if how == "load":
            dormant.load(model, file, dtype=dtype, missing="error")
        else:
            dormant.load(model, file, missing="error", materialize=False)
            dormant.materialize(model, dtype=dtype)
        state = model.state_dict()
        for key, tensor in expected.state_dict().items():
            assert_same_bits(tensor, state[key], key)


def test_a_folder_inside_a_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(1234)
    model: Any = DIFFUSERS["AutoencoderKL"].build()
    model.save_pretrained(tmp_path / "vae")
    got = ours_diffusers.from_pretrained(type(model), tmp_path, subfolder="vae")
    assert_same(type(model).from_pretrained(tmp_path, subfolder="vae"), got, memory=False)


# How save_pretrained and from_pretrained of diffusers are called.
KINDS_OF_FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "variant": ({"variant": "fp16"}, {"variant": "fp16", "torch_dtype": torch.float16}),
    "shards": ({"max_shard_size": "500KB"}, {"torch_dtype": torch.bfloat16}),
    "torch.save": ({"safe_serialization": False}, {"torch_dtype": torch.bfloat16}),
    "initialized first": ({}, {"low_cpu_mem_usage": False}),
    "device map": ({}, {"device_map": {"": "cpu"}}),
    "without mapping": ({}, {"disable_mmap": True}),
}


@pytest.mark.parametrize("case", KINDS_OF_FOLDERS)
def test_kinds_of_folders_of_diffusers(case: str, tmp_path: Path) -> None:
    saving, options = KINDS_OF_FOLDERS[case]
    torch.manual_seed(1234)
    model: Any = DIFFUSERS["UNet2DConditionModel"].build()
    model.save_pretrained(tmp_path, **saving)
    kind = type(model)
    expected, got = both(
        lambda: kind.from_pretrained(tmp_path, **options),
        lambda: ours_diffusers.from_pretrained(kind, tmp_path, **options),
    )
    assert_same(expected, got, memory=False)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_a_whole_pipeline(dtype: torch.dtype | None, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    pipeline = diffusers.LDMPipeline(
        vqvae=DIFFUSERS["VQModel"].build(),
        unet=DIFFUSERS["UNet2DModel"].build(),
        scheduler=diffusers.DDIMScheduler(),
    )
    pipeline.save_pretrained(tmp_path)
    expected = diffusers.DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    got = ours_diffusers.from_pretrained(diffusers.DiffusionPipeline, tmp_path, dtype=dtype)
    assert type(got) is type(expected)
    for name in ("vqvae", "unet"):
        assert_same(getattr(expected, name), getattr(got, name), memory=False)
    lazy = ours_diffusers.from_pretrained(diffusers.DiffusionPipeline, tmp_path, materialize=False)
    report = dormant.materialize(lazy.unet)
    assert report.lazy_rate > 0.99
    assert report.initialized_bytes == 0


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth", "ema.pth"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_models_of_timm(name: str, file: str, tmp_path: Path) -> None:
    options = {"img_size": 64} if "vit" in name else {}
    torch.manual_seed(1234)
    state = timm.create_model(name, **options).state_dict()
    path = tmp_path / file
    if file.endswith("safetensors"):
        safetensors.torch.save_file(state, path)
    elif file == "ema.pth":
        other = {key: torch.zeros_like(value) for key, value in state.items()}
        ema = {f"module.{key}": value for key, value in state.items()}
        torch.save({"state_dict": other, "state_dict_ema": ema, "epoch": 3}, path)
    else:
        torch.save(state, path)
    expected, got = both(
        lambda: timm.create_model(name, checkpoint_path=str(path), **options),
        lambda: ours_timm.create_model(name, checkpoint_path=path, **options),
    )
    assert_same(expected, got, memory=False)
    assert_same_output(expected.eval(), got.eval(), {"x": PICTURE})
    lazy = ours_timm.create_model(name, checkpoint_path=path, materialize=False, **options)
    report = dormant.materialize(lazy)
    assert report.read_bytes > 0.99 * report.nbytes
    assert report.initialized_bytes == 0


def test_options_have_the_same_names_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(1234)
    state = timm.create_model("test_vit").state_dict()
    head = state.pop("head.weight")
    state["other.weight"] = head
    torch.save(state, tmp_path / "vit.pth")
    options: dict[str, Any] = {"checkpoint_path": tmp_path / "vit.pth"}
    for wrong in ({}, {"missing": "init"}, {"unexpected": "ignore"}):
        with pytest.raises(KeyError, match=r"(head|other)\.weight"):
            ours_timm.create_model("test_vit", **wrong, **options)
    torch.manual_seed(7)
    expected = timm.create_model("test_vit")
    expected.load_state_dict(state, strict=False)
    torch.manual_seed(7)
    options |= {"missing": "init", "unexpected": "ignore"}
    got = ours_timm.create_model("test_vit", **options)
    assert_same(expected, got, memory=False)
    cast = ours_timm.create_model("test_vit", dtype=torch.bfloat16, **options)
    assert cast.head.weight.dtype is torch.bfloat16
    packed = ours_timm.create_model("test_vit", quantization_config="int8", **options)
    assert packed.blocks[0].mlp.fc1.weight.dtype is torch.int8

    names = {"weights": None, "num_classes": 3}
    net = ours_torchvision.get_model("alexnet", quantization_config="int8", **names)
    assert net.classifier[1].weight.dtype is torch.int8

    model: Any = DIFFUSERS["DiTTransformer2DModel"].build()
    model.save_pretrained(tmp_path / "dit")
    file = next((tmp_path / "dit").glob("*.safetensors"))
    state = safetensors.torch.load_file(file)
    name, value = state.popitem()
    safetensors.torch.save_file({**state, "other": value}, file, {"format": "pt"})
    with pytest.raises(KeyError, match=re.escape(name)):
        ours_diffusers.from_pretrained(type(model), tmp_path / "dit", missing="error")
    with pytest.raises(KeyError, match="other"):
        ours_diffusers.from_pretrained(type(model), tmp_path / "dit", unexpected="error")
    model.save_pretrained(tmp_path / "dit")
    packed = ours_diffusers.from_pretrained(
        type(model), tmp_path / "dit", quantization_config="int8"
    )
    assert any(weight.dtype is torch.int8 for weight in packed.parameters())
    with pytest.raises(ValueError, match="pipeline of several models"):
        ours_diffusers.from_pretrained(
            diffusers.DiffusionPipeline, tmp_path, quantization_config="nf4"
        )


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 7}, {"in_chans": 1}, {"features_only": True}], ids=str
)
def test_a_file_instead_of_the_download_of_timm(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1234)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    options = {**options, "pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    expected, got = both(
        lambda: timm.create_model("test_resnet", **options),
        lambda: ours_timm.create_model("test_resnet", **options),
    )
    assert_same(expected, got, memory=False)


def test_timm_without_a_checkpoint() -> None:
    expected, got = both(
        lambda: timm.create_model("test_resnet"), lambda: ours_timm.create_model("test_resnet")
    )
    assert_same(expected, got)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_models_of_torchvision(name: str, wrapped: bool, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    state = torchvision.models.get_model(name, num_classes=5).state_dict()
    path = tmp_path / "model.pth"
    torch.save({"model": state, "epoch": 3} if wrapped else state, path)

    def theirs() -> Any:
        model = torchvision.models.get_model(name, num_classes=5)
        model.load_state_dict(state)
        return model

    expected, got = both(
        theirs, lambda: ours_torchvision.get_model(name, checkpoint=path, num_classes=5)
    )
    assert_same(expected, got)
    assert_same_output(expected.eval(), got.eval(), {"x": PICTURE})


def test_files_of_the_training_scripts_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(1234)
    model = torchvision.models.squeezenet1_1(num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    model(PICTURE).sum().backward()
    optimizer.step()
    path = tmp_path / "model_1.pth"
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save({**saved, "model_ema": averaged.state_dict()}, path)
    expected = {"model": model, "model_ema": averaged.module}
    assert not torch.equal(*(net.classifier[1].weight for net in expected.values()))
    for key, net in expected.items():
        got = ours_torchvision.get_model(
            "squeezenet1_1",
            checkpoint=dormant.open_checkpoint(path, key=key),
            unexpected="ignore" if key == "model_ema" else "error",  # how often it was averaged
            rename={"module.": ""} if key == "model_ema" else None,
            num_classes=5,
        )
        for name, tensor in net.state_dict().items():
            assert torch.equal(got.state_dict()[name], tensor), name
    torch.save(saved, path)
    got = ours_torchvision.get_model("squeezenet1_1", checkpoint=path, num_classes=5)
    assert torch.equal(got.classifier[1].weight, model.classifier[1].weight)


def test_names_of_old_densenet_files(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    old = {}
    for name, tensor in state.items():
        for layer in ("norm1", "conv1", "norm2", "conv2"):
            if ".denselayer" in name:
                name = name.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = tensor
    torch.save(old, tmp_path / "old.pth")
    got = ours_torchvision.get_model(
        "densenet121", checkpoint=tmp_path / "old.pth", missing="init", dtype=torch.float64
    )
    for name, tensor in state.items():
        expected = tensor.double() if tensor.is_floating_point() else tensor
        assert torch.equal(got.state_dict()[name], expected), name


def test_errors_name_what_does_not_fit(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "model.pth")
    with pytest.raises(KeyError, match="of another shape"):
        ours_torchvision.get_model("resnet18", checkpoint=tmp_path / "model.pth", missing="init")
    with pytest.raises(ValueError, match="unexpected must be one of"):
        ours_torchvision.get_model("resnet18", unexpected="init")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        ours_timm.create_model("test_resnet", checkpoint_path=tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="from_pretrained"):
        ours_diffusers.from_pretrained(object, tmp_path / "nothing")
