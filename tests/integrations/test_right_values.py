"""Models keep the values of their constructor and of their file, where the library loses them."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import safetensors.torch
import timm
import torch
import transformers
from libraries import models
from transformers import PretrainedConfig, PreTrainedModel

import dormant
from compare import assert_same_bits
from dormant.integrations.diffusers import from_pretrained as from_pretrained_by_diffusers
from dormant.integrations.transformers import from_pretrained
from dormant.loading import construction

SEED = 23


class Settings(PretrainedConfig):
    model_type = "right_values"


class Toy(PreTrainedModel):
    """A rule for linear layers only, which asks for nothing, as much code of model repositories."""

    config_class = Settings

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.body = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.scale = torch.nn.Parameter(torch.tensor(2.6592))
        self.code = torch.nn.Parameter(torch.randn(5, 3))
        self.register_buffer("rates", 1 / torch.arange(1, 9).float(), persistent=False)
        self.register_buffer("ids", torch.arange(12).expand((1, -1)), persistent=False)
        self.register_buffer("noise", torch.randn(4), persistent=False)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(std=9.0)
            module.bias.data.fill_(7.0)


def saved(kind: Any, folder: Path, without: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Saves a model of 1.5 throughout, and returns what its file has."""
    with dormant.lazy_init():  # the library itself cannot build all of them
        model = kind(kind.config_class())
    state = {
        name: torch.full(tensor.shape, 1.5) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith(without or ("nothing",))
    }
    model.config.save_pretrained(folder)
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


def by_the_integration(kind: Any, folder: Path, **options: Any) -> Any:
    return from_pretrained(kind, folder, **options)


def by_the_library_inside(kind: Any, folder: Path, **options: Any) -> Any:
    with dormant.lazy_init():
        model = kind.from_pretrained(folder, **options)
    dormant.materialize(model)
    return model


WAYS = [by_the_integration, by_the_library_inside]
both_ways = pytest.mark.parametrize("way", WAYS)


def loaded(way: Callable[..., Any], kind: Any, folder: Path, **options: Any) -> Any:
    """The model, in memory that was full of other things, without a warning."""
    del [torch.full((1 << size,), 1e30) for size in range(3, 16)][:]
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return way(kind, folder, **options)


def constructed(kind: Any) -> Any:
    torch.manual_seed(SEED)
    return kind(kind.config_class())


@both_ways
def test_what_the_file_lacks_has_the_values_of_the_constructor(way: Any, tmp_path: Path) -> None:
    state = saved(Toy, tmp_path, without=("scale", "code", "norm"))
    model, eager = loaded(way, Toy, tmp_path), constructed(Toy)
    for name, tensor in model.state_dict().items():
        assert_same_bits(state.get(name, eager.state_dict()[name]), tensor, name)
    for name in ("rates", "ids", "noise"):
        assert_same_bits(getattr(eager, name), getattr(model, name), name)


@both_ways
def test_what_a_rule_sets_is_drawn_from_the_numbers_of_the_library(
    way: Any, tmp_path: Path
) -> None:
    saved(Toy, tmp_path, without=("head",))
    torch.manual_seed(SEED)
    theirs = Toy.from_pretrained(tmp_path)
    after = torch.get_rng_state()
    model = loaded(way, Toy, tmp_path)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same_bits(theirs.head.weight, model.head.weight)
    assert_same_bits(theirs.head.bias, model.head.bias)
    assert model.head.weight.abs().max() > 5


@both_ways
def test_buffers_have_the_dtype_that_the_library_gives_them(way: Any, tmp_path: Path) -> None:
    saved(Toy, tmp_path)
    theirs = Toy.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model = loaded(way, Toy, tmp_path, dtype=torch.bfloat16)
    for name, buffer in theirs.named_buffers():
        assert model.get_buffer(name).dtype is buffer.dtype, name
    assert_same_bits(1 / torch.arange(1, 9).float(), model.rates)
    assert model.noise.dtype is torch.bfloat16


def through_data(weight: torch.Tensor) -> None:
    weight.data.normal_(std=9.0)


def with_copy(weight: torch.Tensor) -> None:
    weight.copy_(torch.ones_like(weight))


def other_data(weight: torch.Tensor) -> None:
    weight.data = torch.zeros(6, 6)


def other_shape(weight: torch.Tensor) -> None:
    if hasattr(weight, "_is_hf_initialized"):  # not in the constructor
        weight.data = torch.zeros(2, 2)


def fused(weight: torch.Tensor) -> None:
    torch._foreach_mul_([weight, torch.ones(2)], 3.0)


def a_row(weight: torch.Tensor) -> None:
    weight[2].zero_()


def by_numpy(weight: torch.Tensor) -> None:
    weight.data.numpy()[:] = 4


def after_reading(weight: torch.Tensor) -> None:
    weight.data.mul_(float(weight.sum()))


def by_storage(weight: torch.Tensor) -> None:
    weight.untyped_storage().fill_(1)


WRITERS = [
    *(through_data, with_copy, other_data, other_shape, fused, a_row, by_numpy, after_reading),
    by_storage,
]


class Rewriting(PreTrainedModel):
    config_class = Settings
    write: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.body = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 6)
        self.copy = torch.nn.Parameter(torch.zeros(6, 6))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, torch.nn.Linear):
            type(self).write(module.weight)
        elif module is self:
            self.copy.data.copy_(self.body.weight)


@both_ways
@pytest.mark.parametrize("write", WRITERS)
def test_what_was_loaded_cannot_be_overwritten(way: Any, write: Any, tmp_path: Path) -> None:
    kind = type("Rewriting", (Rewriting,), {"write": staticmethod(write)})
    # Where a module of such code is loaded whole, the library itself leaves it out.
    state = saved(kind, tmp_path, without=("head.bias", "body.bias", "copy"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = way(kind, tmp_path)
    for name, tensor in state.items():
        assert_same_bits(tensor, model.state_dict()[name], name)
    assert_same_bits(state["body.weight"], model.copy, "what another rule has read of it")
    texts = [str(one.message) for one in caught if one.category is UserWarning]
    assert len(texts) == 1
    assert "initialization of Rewriting" in texts[0]
    assert "body.weight (Linear), head.weight (Linear)" in texts[0]
    assert "bias" not in texts[0]


@both_ways
def test_another_parameter_in_its_place_is_taken_back(way: Any, tmp_path: Path) -> None:
    class Replacing(Toy):
        def _init_weights(self, module: torch.nn.Module) -> None:
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(torch.zeros(6, 6))

    state = saved(Replacing, tmp_path, without=("head.bias",))
    with pytest.warns(UserWarning, match=r"loaded: head\.weight \(Linear\)\."):
        model = way(Replacing, tmp_path)
    for name, tensor in state.items():
        assert_same_bits(tensor, model.state_dict()[name], name)


@both_ways
def test_reading_what_was_loaded_is_no_write(way: Any, tmp_path: Path) -> None:
    class Reading(Toy):
        def _init_weights(self, module: torch.nn.Module) -> None:
            if isinstance(module, torch.nn.Linear):
                module.bias.data.fill_(float(module.weight.sum()))

    saved(Reading, tmp_path, without=("head.bias", "body.bias"))
    assert (loaded(way, Reading, tmp_path).head.bias == 54).all()


def test_library_values_are_what_the_library_gives(tmp_path: Path) -> None:
    saved(Toy, tmp_path, without=("head.bias",))
    torch.manual_seed(SEED)
    theirs = Toy.from_pretrained(tmp_path)
    model = loaded(by_the_integration, Toy, tmp_path, library_values=True)
    assert not (theirs.head.weight == 1.5).any()
    for name, tensor in theirs.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[name], name)


@both_ways
def test_a_parameter_under_two_names_is_one(way: Any, tmp_path: Path) -> None:
    class Sharing(Toy):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.other = torch.nn.Linear(6, 6)
            self.other.weight = self.head.weight
            self.again = self.body

    state = saved(Sharing, tmp_path, without=("other", "again"))
    with pytest.warns(UserWarning, match=r"loaded: other\.weight \(Linear\)\."):
        model = way(Sharing, tmp_path)
    assert model.other.weight is model.head.weight
    assert model.again is model.body
    for name, tensor in state.items():
        assert_same_bits(tensor, model.state_dict()[name], name)
    saved(Sharing, tmp_path, without=("other", "head"))
    model = loaded(way, Sharing, tmp_path)
    assert model.other.weight is model.head.weight


# ---- constructors that load


def nested(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model whose constructor loads one whose constructor loads one, and the innermost file."""
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=20,
        max_position_embeddings=8,
    )
    torch.manual_seed(9)
    bert = transformers.BertForMaskedLM(config)
    bert.save_pretrained(folder / "bert")

    class Middle(PreTrainedModel):
        config_class = Settings

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.bert = transformers.BertForMaskedLM.from_pretrained(folder / "bert")
            # Tied already, whatever loads the model around it.
            assert (
                self.bert.get_output_embeddings().weight is self.bert.get_input_embeddings().weight
            )
            self.out = torch.nn.Linear(16, 4)
            self.post_init()

    (folder / "middle").mkdir()
    saved(Middle, folder / "middle", without=("bert",))

    class Outer(Toy):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.middle = Middle.from_pretrained(folder / "middle")
            self.post_init()

    return Outer, {f"middle.bert.{name}": t.detach() for name, t in bert.state_dict().items()}


@both_ways
@pytest.mark.parametrize(
    "without", ["nothing", "middle.bert.bert.encoder", "middle.bert", "middle"]
)
def test_a_constructor_may_load_another_model(way: Any, without: str, tmp_path: Path) -> None:
    kind, inner = nested(tmp_path)
    (tmp_path / "outer").mkdir()
    state = saved(kind, tmp_path / "outer", without=(without,))
    model = loaded(way, kind, tmp_path / "outer")
    found = model.state_dict()
    assert len(inner) > 20
    for name, tensor in {**inner, **state}.items():
        assert_same_bits(tensor, found[name], name)
    assert (model.middle.out.weight == 1.5).all()


class WithBackbone(PreTrainedModel):
    """The rule is the library's own, which initializes batch norms, their counters included."""

    config_class = Settings
    file: Path

    def load(self) -> torch.nn.Module:
        raise NotImplementedError

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.backbone = self.load()
        self.head = torch.nn.Linear(4, 4)
        self.post_init()


class Timm(WithBackbone):
    def load(self) -> torch.nn.Module:
        overlay = {"file": str(self.file)}
        return timm.create_model("resnet10t", pretrained=True, pretrained_cfg_overlay=overlay)


class TorchHub(WithBackbone):
    def load(self) -> torch.nn.Module:
        model = timm.create_model("resnet10t")
        model.load_state_dict(torch.load(self.file, map_location="cpu", weights_only=True))
        return model.eval()


@both_ways
@pytest.mark.parametrize("base", [Timm, TorchHub])
@pytest.mark.parametrize("without", [(), ("backbone.layer1",), ("backbone",)], ids=str)
def test_a_constructor_may_load_a_file(
    way: Any, base: Any, without: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "backbone.pt"
    torch.manual_seed(8)
    backbone = timm.create_model("resnet10t").state_dict()
    backbone = {
        name: tensor + (tensor.dtype is torch.int64) * 5 for name, tensor in backbone.items()
    }
    torch.save(backbone, file)
    kind = type("Kind", (base,), {"file": file})
    (tmp_path / "outer").mkdir()
    state = saved(kind, tmp_path / "outer", without=without)
    found = loaded(way, kind, tmp_path / "outer").state_dict()
    for name, tensor in {f"backbone.{name}": t for name, t in backbone.items()}.items():
        assert_same_bits(state.get(name, tensor), found[name], name)
    assert (found["head.weight"] == 1.5).all()


# ---- constructors that read values

REMOTE = """
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel


class ReaderConfig(PretrainedConfig):
    model_type = "reader"


class Reader(PreTrainedModel):
    config_class = ReaderConfig

    def __init__(self, config):
        super().__init__(config)
        rates = [x.item() for x in torch.linspace(0, 0.3, 4)]
        widths = torch.arange(2, 6).tolist()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Dropout(rate)) for rate in rates
        )
        self.proj = torch.nn.Linear(6, int(torch.tensor(widths).sum()))
        table = torch.randn(3, 4)
        self.table = np.array(table)
        self.register_buffer("mean", table[table > 0].mean(), persistent=False)
        if bool((table > 100).any()):
            raise ValueError("the table is garbage")
        self.post_init()
"""


@both_ways
def test_constructors_of_remote_code_may_read_values(
    way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / f"reader_{way.__name__}"
    folder.mkdir()
    (folder / "modeling_reader.py").write_text(REMOTE)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "reader",
                "auto_map": {
                    "AutoConfig": "modeling_reader.ReaderConfig",
                    "AutoModel": "modeling_reader.Reader",
                },
            }
        )
    )
    namespace: dict[str, Any] = {"__name__": "reader"}
    exec(REMOTE, namespace)
    eager = constructed(namespace["Reader"])
    safetensors.torch.save_file(
        {
            name: torch.full_like(t, 1.5)
            for name, t in eager.state_dict().items()
            if "layers.0" not in name
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    model = loaded(way, transformers.AutoModel, folder, trust_remote_code=True)
    assert type(model).__name__ == "Reader"
    assert [layer[1].p for layer in model.layers] == [layer[1].p for layer in eager.layers]
    assert model.proj.out_features == 14
    assert numpy.array_equal(model.table, eager.table)
    assert_same_bits(eager.mean, model.mean)
    assert (model.proj.weight == 1.5).all()
    assert model.layers[0][0].weight.abs().max() < 0.2


# ---- what else may happen


@both_ways
def test_a_constructor_that_fails_leaves_nothing_behind(way: Any, tmp_path: Path) -> None:
    class Failing(Toy):
        fails = False

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if self.fails:
                raise ValueError("not today")

    state = saved(Failing, tmp_path)
    Failing.fails = True
    torch.manual_seed(SEED)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="not today"):
        way(Failing, tmp_path)
    assert construction.current() is None
    assert torch.equal(torch.get_rng_state(), before)
    Failing.fails = False
    model = loaded(way, Failing, tmp_path)
    assert_same_bits(state["body.weight"], model.body.weight)


@both_ways
def test_a_rule_that_fails_has_written_nothing(way: Any, tmp_path: Path) -> None:
    kept: list[Any] = []

    class Failing(Toy):
        def _init_weights(self, module: torch.nn.Module) -> None:
            if isinstance(module, torch.nn.Linear):
                module.weight.data.zero_()
                if hasattr(module.weight, "_is_hf_initialized"):
                    kept.append(module)
                    raise ValueError("not this one")

    saved(Failing, tmp_path, without=("head.bias", "body.bias"))
    with pytest.raises(ValueError, match="not this one"):
        way(Failing, tmp_path)
    assert (kept[0].weight == 1.5).all()
    assert construction.current() is None


@pytest.fixture
def own_init_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the functions of torch.nn.init back, also where they were imported to.

    While transformers loads it replaces them, and two threads that do it at once take each other's
    for the originals (`guard_torch_init_functions`, without Dormant as well).
    """
    library = importlib.import_module("transformers.initialization")
    for name in library.TORCH_MODULES_TO_PATCH:
        module = sys.modules.get(name)
        for function in library.TORCH_INIT_FUNCTIONS:
            if hasattr(module, function):
                monkeypatch.setattr(module, function, getattr(module, function))


@pytest.mark.threads
@both_ways
@pytest.mark.usefixtures("own_init_functions")
def test_two_threads_load_at_once(way: Any, tmp_path: Path) -> None:
    kind, inner = nested(tmp_path)
    (tmp_path / "outer").mkdir()
    state = saved(kind, tmp_path / "outer", without=("middle",))
    failures: list[BaseException] = []
    barrier = threading.Barrier(2)

    def work() -> None:
        try:
            for _ in range(3):
                barrier.wait(timeout=60)
                found = way(kind, tmp_path / "outer").state_dict()
                for name, tensor in {**inner, **state}.items():
                    assert_same_bits(tensor, found[name], name)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@both_ways
def test_tied_weights_on_disk_are_not_compared(way: Any, tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20)
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(config)
    config.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    options = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "disk"}
    found = way(transformers.GPT2LMHeadModel, tmp_path, **options)
    assert found.lm_head.weight.is_meta
    assert found.all_tied_weights_keys == model.all_tied_weights_keys
    words = torch.arange(6).view(1, 6)
    assert_same_bits(model.eval()(words).logits, found(words).logits)


def test_outside_of_the_context_the_library_is_as_it_was(tmp_path: Path) -> None:
    saved(Toy, tmp_path, without=("head.bias",))
    kept = dormant.open_checkpoint(tmp_path)["body.weight"]  # the patches are in place
    torch.manual_seed(SEED)
    model = Toy.from_pretrained(tmp_path)
    assert dormant.is_lazy(kept)
    assert (model.head.weight != 1.5).all()


# ---- diffusers

DIFFUSERS = {row.name: row for row in models("diffusers")}


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["UNet2DConditionModel", "AutoencoderKL", "DiTTransformer2DModel"])
def test_layers_that_the_file_lacks_are_those_of_the_constructor(
    name: str, inside: bool, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    source: Any = DIFFUSERS[name].build()
    kind = type(source)
    source.save_pretrained(tmp_path)
    file = tmp_path / diffusers.utils.SAFETENSORS_WEIGHTS_NAME
    state = safetensors.torch.load_file(file)
    kept = {key: tensor for number, (key, tensor) in enumerate(sorted(state.items())) if number % 5}
    safetensors.torch.save_file(kept, file, metadata={"format": "pt"})
    torch.manual_seed(SEED)
    eager = kind.from_config(kind.load_config(tmp_path))
    eager.load_state_dict(kept, strict=False)
    torch.manual_seed(SEED)
    options = {"low_cpu_mem_usage": low_cpu_mem_usage}
    if inside:
        with dormant.lazy_init():
            model = kind.from_pretrained(tmp_path, **options)
        dormant.materialize(model)
    else:
        model = from_pretrained_by_diffusers(kind, tmp_path, **options)
    for (key, expected), found in zip(
        [*eager.named_parameters(), *eager.named_buffers()],
        [*model.parameters(), *model.buffers()],
        strict=True,
    ):
        assert not found.is_meta, key
        assert_same_bits(expected, found, key)
