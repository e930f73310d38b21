"""What a random program may call: a row per operator. To add an operator, add a row.

`Operator("add", "{f}, {like}", "fmio")` gives four kinds of steps:

    f  v1 = torch.add(v0, v2)           i  v0.add_(v2)
    m  v1 = v0.add(v2)                  o  torch.add(v0, v2, out=v3)

Everything else is a `Line`: the code itself; one that begins with `=` makes a new variable. The
words in braces are the methods of `Arguments` (arguments.py) that fill them in, from left to right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A statement, or with `=` before it an expression.

    Attributes:
        code: with placeholders.
        weight: how often it is taken, beside the others of its group.
        alone: whether it draws from the default generator, or changes what all threads see, so that
            only the first thread may do it.
    """

    code: str
    weight: float = 1.0
    alone: bool = False


@dataclass(frozen=True)
class Operator:
    """An operator of `torch.` whose arguments are the same in all its forms."""

    name: str
    arguments: str
    forms: str = "fm"
    weight: float = 1.0

    def lines(self) -> Iterator[Line]:
        """A line for each form."""
        first, _, rest = self.arguments.partition(", ")
        weight = self.weight / len(self.forms)
        name = self.name
        for form in self.forms:
            if form == "f":
                yield Line(f"=torch.{name}({self.arguments})", weight)
            elif form == "m":
                yield Line(f"={first}.{name}({rest})", weight)
            elif form == "i":
                target = first.replace("{", "{w")
                yield Line(f"{target}.{name}_({rest})", weight)
            elif form == "o":
                yield Line(f"torch.{name}({self.arguments}, out={{out}})", weight)


Row = Line | Operator

FACTORIES: list[Row] = [
    Line("=torch.zeros({shape}{options})"),
    Line("=torch.ones({shape}{options})"),
    Line("=torch.full({shape}, {value}{options})"),
    Line("=torch.empty({shape}{options}).fill_({value})"),
    Line("=torch.arange({count}{options})"),
    Line("=torch.arange({count}.0, 0, -1)"),
    Line("=torch.linspace({number}, {number}, {count}{options})"),
    Line("=torch.logspace(0, 2, {count})"),
    Line("=torch.eye({small}{options})"),
    Line("=torch.tensor({numbers}{options})"),
    Line("=torch.tensor([{numbers}, {numbers}])"),
    Line("=torch.as_tensor({numbers})"),
    Line("=torch.scalar_tensor({number}{options})"),
    Line("=torch.hann_window({count})"),
    Line("=torch.tril_indices({small}, {small})"),
    Line("=torch.complex({f}, {same})"),
    Line("=torch.polar({f}, {same})", 0.3),
    Line("=torch.zeros_like({t}{options})"),
    Line("=torch.ones_like({t})"),
    Line("=torch.full_like({t}, {value})"),
    Line("=torch.empty_like({t}).fill_({value})"),
    Line("=torch.empty_strided((4, {small}), (1, 4)).fill_({value})", 0.5),
    Line("=torch.empty_permuted(({small}, 2, 3), (1, 2, 0)).fill_({value})", 0.5),
    Line("=torch.empty(({small}, 2, 3, 2), memory_format=torch.channels_last).fill_({value})", 0.5),
    Line("={t}.new_zeros({shape})"),
    Line("={t}.new_full({shape}, {value})"),
    Line("={t}.new_ones({shape}{options})"),
    Line("={t}.new_tensor({numbers})"),
]

DRAWS: list[Row] = [
    Line("=torch.rand({shape}{gen}{options})", 2),
    Line("=torch.randn({shape}{gen}{options})", 2),
    Line("=torch.randint({low}, {high}, {shape}{gen})", 2),
    Line("=torch.randperm({count}{gen})"),
    Line("=torch.normal({number}, {scale}, {shape}{gen})"),
    Line("=torch.normal({f}, {scale}{gen})"),
    Line("=torch.normal({f}, {same}.abs(){gen})"),
    Line("=torch.bernoulli({f}.sigmoid(){gen})"),
    Line("=torch.bernoulli({f}{gen})", 0.3),
    Line("=torch.poisson({f}.abs(){gen})"),
    Line("=torch.multinomial({f}.abs() + 0.1, 2, True{gen})"),
    Line("=torch.multinomial({f}, {n}{gen})", 0.3),
    Line("=torch.rand_like({f})", alone=True),
    Line("=torch.randn_like({f})", alone=True),
    Line("=torch.randint_like({t}, {high})", alone=True),
    Line("=F.dropout({f}, {probability})", alone=True),
    Line("F.dropout({wf}, {probability}, True, True)", alone=True),
    Line("{wf}.normal_({number}, {scale}{gen})", 3),
    Line("{wf}.uniform_({low}, {high}{gen})", 3),
    Line("{w}.bernoulli_({probability}{gen})"),
    Line("{w}.bernoulli_({f}.sigmoid(){gen})"),
    Line("{wf}.exponential_({scale}{gen})"),
    Line("{wf}.cauchy_({number}, {scale}{gen})"),
    Line("{w}.geometric_({probability}{gen})"),
    Line("{wf}.log_normal_({number}, {scale}{gen})"),
    Line("{w}.random_({low}, {high}{gen})"),
    Line("{w}.random_({high}{gen})"),
    Line("{w}.random_({gen1})"),
    Line("torch.randn({shape}, out={out}{gen})"),
    Line("torch.rand({shape}, out={out}{gen})"),
    Line("torch.randperm({count}, out={out}{gen})"),
    Line("nn.init.trunc_normal_({wf}, {number}, {scale}{gen})"),
    Line("nn.init.kaiming_uniform_({wm}{gen})"),
    Line("nn.init.kaiming_normal_({wm}{gen})"),
    Line("nn.init.xavier_uniform_({wm}{gen})"),
    Line("nn.init.xavier_normal_({wm}{gen})"),
    Line("nn.init.orthogonal_({wm}{gen})"),
    Line("nn.init.sparse_({wm}, {probability}{gen})", 0.3),
    Line("nn.init.eye_({wm})"),
    Line("torch.manual_seed({n})", alone=True),
    Line("=torch.get_rng_state()", alone=True),
    Line("g0.manual_seed({n})", alone=True),
    Line("torch.set_rng_state(g0.get_state())", 0.3, alone=True),
]

_UNARY = {
    "{f}": "exp log sqrt rsqrt sin cos tanh sigmoid erf erfinv floor ceil round trunc frac log1p "
    "expm1 digamma lgamma logit exp2 log2 log10 nan_to_num deg2rad sinc",
    "{t}": "abs neg square sign reciprocal positive logical_not isnan isfinite",
    "{i}": "bitwise_not",
}
_WITHOUT_IN_PLACE = {"positive", "isnan", "isfinite"}

POINTWISE: list[Row] = [
    *(
        Operator(name, operand, "fm" if name in _WITHOUT_IN_PLACE else "fmio", 0.4)
        for operand, names in _UNARY.items()
        for name in names.split()
    ),
    Operator("relu", "{t}", "fmi"),
    Operator("add", "{t}, {like}", "fmio", 3),
    Operator("add", "{t}, {like}, alpha={n}", "fmio"),
    Operator("sub", "{t}, {like}", "fmio", 2),
    Operator("mul", "{t}, {like}", "fmio", 3),
    Operator("div", "{t}, {like}", "fmio", 2),
    Operator("div", "{t}, {like}, rounding_mode='floor'", "fmio"),
    Operator("floor_divide", "{t}, {like}", "fmio"),
    Operator("pow", "{t}, {like}", "fmio"),
    Operator("pow", "{t}, {n}", "fmio"),
    Operator("fmod", "{t}, {like}", "fmio"),
    Operator("remainder", "{t}, {like}", "fmio"),
    Operator("atan2", "{f}, {likef}", "fmio"),
    Operator("hypot", "{f}, {likef}", "fmio"),
    Operator("copysign", "{f}, {like}", "fmio"),
    Operator("maximum", "{t}, {liket}", "fmo"),
    Operator("minimum", "{t}, {liket}", "fmo"),
    Operator("fmax", "{t}, {liket}", "fmo"),
    Operator("lerp", "{f}, {likef}, {number}", "fmio"),
    Operator("addcmul", "{f}, {likef}, {likef}, value={n}", "fmio"),
    Operator("addcdiv", "{f}, {likef}, {likef}", "fmio"),
    Operator("clamp", "{t}, {number}, {number}", "fmio", 2),
    Operator("clamp_min", "{t}, {number}", "fmio"),
    Operator("eq", "{t}, {like}", "fmio"),
    Operator("ne", "{t}, {like}", "fmo"),
    Operator("lt", "{t}, {like}", "fmio"),
    Operator("ge", "{t}, {like}", "fmio"),
    Operator("gt", "{t}, {like}", "fmo"),
    Operator("isclose", "{t}, {liket}", "fm"),
    Operator("logical_and", "{t}, {liket}", "fmio"),
    Operator("logical_or", "{t}, {liket}", "fmio"),
    Operator("logical_xor", "{t}, {liket}", "fmio"),
    Operator("bitwise_and", "{i}, {likei}", "fmio"),
    Operator("bitwise_or", "{i}, {likei}", "fmio"),
    Operator("bitwise_left_shift", "{i}, {n}", "fmio"),
    Operator("where", "{b}, {liket}, {liket}", "f", 2),
    Operator("masked_fill", "{t}, {mask}, {number}", "fmi", 2),
    Operator("real", "{t}", "f", 0.5),
    Line("={t} {sign} {like}", 3),
    Line("={number} {sign} {t}", 2),
    Line("={t} ** 2"),
    Line("=-{t}"),
    Line("={t}[{mask}]"),
    Line("=F.gelu({f})"),
    Line("=F.silu({wf}, {flag})"),  # in place where the flag is set
    Line("=F.relu({w}, {flag})"),
    Line("=F.leaky_relu({f}, {number})"),
    Line("=F.elu({f})"),
    Line("=F.softplus({f})"),
    Line("=F.hardtanh({f})"),
    Line("=torch._foreach_add([{f}, {f}], {number})"),
    Line("torch._foreach_mul_([{wf}, {wf}], {number})"),
    Line("torch._foreach_zero_([{w}, {w}])"),
    Line("torch._foreach_copy_([{w}], [{like}])"),
    Line("{w} += {like}", 2),
    Line("{w} *= {like}", 2),
    Line("{w} -= {number}"),
    Line("{w} /= {like}"),
]

REDUCTIONS: list[Row] = [
    Operator("sum", "{t}", "fm"),
    Operator("sum", "{t}, {dim}", "fmo"),
    Operator("sum", "{t}, {dim}, {flag}, dtype={dtype}", "fmo"),
    Operator("mean", "{f}, {dim}", "fmo"),
    Operator("mean", "{t}", "fm"),
    Operator("prod", "{t}, {dim}", "fmo"),
    Operator("amax", "{t}, {dim}", "fmo"),
    Operator("amin", "{t}, {dim}, {flag}", "fmo"),
    Operator("max", "{t}, {dim}", "fm"),
    Operator("min", "{t}", "fm"),
    Operator("argmax", "{t}, {dim}", "fmo"),
    Operator("argmin", "{t}", "fm"),
    Operator("std", "{f}, {dim}", "fmo"),
    Operator("var", "{f}", "fm"),
    Operator("norm", "{f}", "fm"),
    Operator("norm", "{f}, 2, {dim}", "fmo"),
    Operator("all", "{t}", "fm"),
    Operator("any", "{t}, {dim}", "fmo"),
    Operator("cumsum", "{t}, {dim}", "fmio"),
    Operator("cumprod", "{t}, {dim}", "fmio"),
    Operator("cummax", "{t}, {dim}", "fm"),
    Operator("logcumsumexp", "{f}, {dim}", "fmo"),
    Operator("logsumexp", "{f}, {dim}", "fmo"),
    Operator("softmax", "{f}, {dim}", "fm"),
    Operator("log_softmax", "{f}, {dim}", "fm"),
    Operator("count_nonzero", "{t}", "fm"),
    Operator("nansum", "{t}", "fm"),
    Operator("median", "{f}", "fm"),
    Operator("sort", "{t}, {dim}", "fm"),
    Operator("argsort", "{t}, {dim}", "fm"),
    Operator("topk", "{t}, {n}, {dim}", "fm"),
    Operator("kthvalue", "{f}, {n}, {dim}", "fm"),
    Operator("diff", "{t}", "fmo"),
    Line("=torch.bincount({i}.clamp(0, 9))"),
    Operator("nonzero", "{t}", "fmo"),
    Operator("unique", "{t}", "fm"),
    Operator("dist", "{f}, {likef}", "fm"),
    Line("=F.mse_loss({f}, {same})"),
    Line("=F.layer_norm({f}, {lastsize})"),
    Line("=F.normalize({f}, dim={dim})"),
    Line("=F.cross_entropy({m}, {rows})"),
]

LINEAR: list[Row] = [
    Operator("matmul", "{m}, {m}", "fmo"),
    Operator("mm", "{m}, {m}.t()", "fmo"),
    Operator("bmm", "{m}[None], {m}[None]", "f"),
    Operator("mv", "{m}, {vector}", "fmo"),
    Operator("dot", "{vector}, {vector}", "fmo"),
    Operator("outer", "{vector}, {vector}", "fmo"),
    Operator("addmm", "{m}, {m}, {m}", "fmio"),
    Operator("addmv", "{vector}, {m}, {vector}", "fmi"),
    Operator("baddbmm", "{m}, {m}[None], {m}[None]", "fm"),
    Operator("kron", "{vector}, {vector}", "fm"),
    Operator("trace", "{m}", "fm"),
    Operator("tril", "{m}, {n}", "fmio"),
    Operator("triu", "{m}, {n}", "fmio"),
    Operator("diag", "{m}, {n}", "fmo"),
    Operator("diag_embed", "{vector}", "fm"),
    Operator("det", "{square}", "fm", 0.5),
    Operator("inverse", "{square}", "fmo", 0.5),
    Operator("matrix_power", "{square}, 2", "fm", 0.5),
    Line("=torch.linalg.qr({m})"),
    Line("=torch.linalg.norm({f})"),
    Line("=torch.linalg.vector_norm({f}, dim={dim})"),
    Line("=torch.linalg.cholesky({m} @ {m}.t())", 0.5),
    Line("=torch.einsum('ij,kj->ik', {m}, {m})"),
    Line("=F.linear({f}, {m})"),
    Line("=F.linear({m}, {m}, {vector})"),
    Line("=F.conv1d({m}[None], {m}[None])"),
    Line("=F.embedding({rows}, {m})"),
]

MOVEMENTS: list[Row] = [
    Operator("clone", "{t}", "fm", 3),
    Operator("cat", "[{t}, {same}], {dim}", "fo", 3),
    Operator("cat", "[{t}, {t}]", "fo"),
    Operator("stack", "[{t}, {same}], {dim}", "fo", 2),
    Operator("hstack", "[{t}, {same}]", "f"),
    Operator("tile", "{t}, (2, 1)", "fm"),
    Operator("flip", "{t}, [{dim}]", "fm"),
    Operator("roll", "{t}, {n}, {dim}", "fm"),
    Operator("rot90", "{t}", "fm"),
    Operator("index_select", "{t}, {dim}, {index}", "fmo", 2),
    Operator("gather", "{t}, {dim}, {likeindex}", "fmo", 2),
    Operator("take", "{t}, {index}", "fmo"),
    Operator("take_along_dim", "{t}, {likeindex}, {dim}", "fmo"),
    Operator("scatter", "{t}, {dim}, {likeindex}, {number}", "fmio"),
    Operator("scatter", "{t}, {dim}, {likeindex}, {same}", "fmio"),
    Operator("scatter_add", "{t}, {dim}, {likeindex}, {same}", "fmi"),
    Operator("scatter_reduce", "{t}, {dim}, {likeindex}, {same}, 'amax'", "fmi"),
    Operator("index_add", "{t}, {dim}, {every}, {same}", "fmi"),
    Operator("index_copy", "{t}, {dim}, {every}, {same}", "fmi"),
    Operator("index_fill", "{t}, {dim}, {index}, {number}", "fmi"),
    Operator("masked_select", "{t}, {mask}", "fmo"),
    Operator("masked_scatter", "{t}, {mask}, {same}", "fmi"),
    Operator("put", "{t}, {index}, {index}", "fmi", 0.5),
    Operator("repeat_interleave", "{t}, 2, {dim}", "fm"),
    Operator("constant_pad_nd", "{t}, (1, {n}), {number}", "f"),
    Operator("broadcast_to", "{t}, (2, *{t}.shape)", "f"),
    Operator("renorm", "{m}, 2, 0, {scale}", "fmi"),
    Operator("bucketize", "{t}, {vector}", "f", 0.5),
    Line("={t}.repeat(2, {shapeof})"),
    Line("={t}[{index}]", 2),
    Line("={t}[..., None]"),
    Line("={t}.contiguous()"),
    Line("={t}.detach().clone()"),
    Line("=F.pad({t}, ({n}, 1))"),
    Line("=F.one_hot({index}, 9)"),
    Line("=torch.meshgrid({vector}, {vector}, indexing='ij')"),
    Line("=torch.cartesian_prod({vector}, {vector})", 0.5),
    Line("=torch.block_diag({m}, {m})"),
    Line("{w}.copy_({like})", 4),
    Line("{w}.copy_({same})", 4),
    Line("{w}.copy_({m}.t())"),
    Line("{w}.copy_({same}.to_sparse())", 0.5),
    Line("{w}[{key}] = {number}", 3),
    Line("{w}[{key}] = {like}", 2),
    Line("{w}[{mask}] = {number}", 2),
    Line("{w}[{index}] = {number}"),
    Line("{w}.fill_({number})", 3),
    Line("{w}.fill_({t})"),
    Line("{w}.zero_()", 3),
    Line("{w}.fill_diagonal_({number})"),
    Line("{w}.index_put_(({index},), {t}, accumulate={flag})"),
    Line("nn.init.constant_({w}, {number})"),
    Line("nn.init.ones_({w})"),
]

VIEWS: list[Row] = [
    Operator("reshape", "{t}, {reshape}", "fm", 3),
    Operator("transpose", "{t}, {dim}, {dim}", "fm", 2),
    Operator("swapaxes", "{t}, {dim}, {dim}", "fm"),
    Operator("permute", "{t}, {permutation}", "fm", 2),
    Operator("movedim", "{t}, {dim}, {dim}", "fm"),
    Operator("t", "{t}", "fm", 2),
    Operator("select", "{t}, {dim}, {n}", "fm", 2),
    Operator("narrow", "{t}, {dim}, {n}, {n}", "fm", 2),
    Operator("unsqueeze", "{t}, {dim}", "fm", 2),
    Operator("squeeze", "{t}", "fm"),
    Operator("squeeze", "{t}, {dim}", "fm"),
    Operator("diagonal", "{t}", "fm", 2),
    Operator("flatten", "{t}", "fm"),
    Operator("ravel", "{t}", "fm"),
    Operator("unbind", "{t}, {dim}", "fm"),
    Operator("chunk", "{t}, 2, {dim}", "fm", 2),
    Operator("split", "{t}, {n}, {dim}", "fm"),
    Operator("tensor_split", "{t}, 2", "fm"),
    Operator("as_strided", "{t}, {window}", "fm", 2),
    Operator("adjoint", "{t}", "fm", 0.5),
    Operator("conj", "{t}", "fm", 0.5),
    Operator("view_as_real", "{t}", "f", 0.5),
    Operator("resolve_conj", "{t}", "fm", 0.5),
    Operator("detach", "{t}", "fm", 2),
    Line("={t}.view({reshape})", 3),
    Line("={t}.view(-1)", 3),
    Line("={t}.view({shown_as})", 2),
    Line("={t}.expand(2, {shapeof})", 2),
    Line("={t}.expand_as({like})"),
    Line("={t}.unfold({dim}, {n}, {n})"),
    Line("={t}.unflatten({dim}, (-1, {n}))"),
    Line("={t}.view_as({same})"),
    Line("={t}[{key}]", 6),
    Line("={t}.T"),
    Line("={t}.mT"),
    Line("={t}.imag", 0.3),
    Line("={t}.data", 2),
    Line("={t}", 1),
    Line("{w}.t_()"),
    Line("{w}.transpose_({dim}, {dim})"),
    Line("{w}.squeeze_()"),
    Line("{w}.unsqueeze_({dim})"),
    Line("{w}.swapaxes_({dim}, {dim})"),
    Line("{w}.as_strided_({window})"),
    Line("{w}.detach_()"),
    Line("del {variable}", 3),
]

CONVERSIONS: list[Row] = [
    Line("={t}.to({dtype})", 4),
    Line("={t}.to({t})"),
    Line("={t}.to({dtype}, copy=True)"),
    Line("={t}.to(memory_format=torch.channels_last)"),
    Line("={t}.contiguous(memory_format=torch.channels_last)"),
    Line("={t}.type({dtype})"),
    Line("={t}.type_as({t})"),
    *(Line(f"={{t}}.{name}()", 0.5) for name in ("float", "double", "half", "long", "int", "bool")),
    Line("={t}.bfloat16()", 0.5),
    Line("={t}.byte()", 0.5),
    Line("={t}.cfloat()", 0.5),
    Line("={t}.cpu()", 0.5),
    Line("={t}.to_sparse()", 0.5),
    Line("={t}.to_sparse().to_dense()", 0.5),
    Line("=torch.quantize_per_tensor({f}, 0.1, 0, torch.qint8)", 0.3),
    Line("torch.set_default_dtype({dtype})", 0.7, alone=True),
    Line("{w}.data = {t}.data.to({dtype})", 1, alone=True),
    Line("{w}.data = {t}", 1.5, alone=True),
]

RESIZES: list[Row] = [
    Line("{w}.resize_({shape}).fill_({number})", 3),
    Line("{w}.resize_({reshape})", 3),
    Line("{w}.resize_(1)", 2),
    Line("{w}.resize_(0)"),
    Line("{w}.resize_as_({same})"),
    Line("{w}.set_({t}.detach())", 2),
    Line("{w}.set_({t}.untyped_storage())"),
    Line("{w}.set_({t}.untyped_storage(), 0, (1,), (1,))"),
    Line("{w}.set_()"),
    Line("=torch.empty(0, dtype={shown_as}).set_({t}.untyped_storage())"),
    Line("=torch.tensor([], dtype={t}.dtype).set_({t}.detach())"),
]

COPIES: list[Row] = [
    Line("=copy.deepcopy({t})", 3),
    Line("=copy.deepcopy([{t}, {t}])", 2),
    Line("=copy.copy({t})"),
    Line("=pickle.loads(pickle.dumps({pickled}))", 2),
    Line("=pickle.loads(pickle.dumps([{pickled}, {apart}]))"),
    Line("=stored({t})", 2),
    Line("=stored([{t}, {t}])"),
    Line("materialize({t})", 3),
    Line("materialize([{t}, {t}])"),
]

READS: list[Row] = [
    Line("={t}.sum().item()", 2),
    Line("={t}.tolist()", 2),
    Line("={t}.numpy().tolist()"),
    Line("=bool(({t} > 0).all())"),
    Line("=bool({t})"),
    Line("=float({t})"),
    Line("=int({t})"),
    Line("=len({t})"),
    Line("=str({t})"),
    Line("=torch.equal({t}, {same})"),
    Line("=torch.allclose({f}, {same})"),
    Line("={t}.is_contiguous(), {t}.stride(), {t}.storage_offset()"),
    Line("={t}.dtype, {t}.is_leaf, {t}._version"),
    Line("={t} is {t}"),
    Line("={t}.is_set_to({t})"),
    Line("={t}.data_ptr() == {t}.data_ptr()", 0.5),
    Line("=torch.result_type({t}, {like})"),
    Line("=[x.sum() for x in {t}]"),
    Line("=hash({t}) == hash({t})", 0.3),
    Line("={t} in [{t}]", 0.3),
]

AUTOGRAD: list[Row] = [
    Line("=nn.Parameter({t})", 3),
    Line("=nn.Parameter({t}, requires_grad=False)"),
    Line("={f}.detach().requires_grad_()", 4),
    Line("{w}.requires_grad_({flag})", 3),
    Line("={g}.pow(2)", 2),
    Line("={g} * {likef}", 4),
    Line("={g}.sum()", 2),
    Line("={g}.exp().sum().backward()", 2),
    Line("({g} * {likef}).sum().backward()", 4),
    Line("{g}.backward()"),
    Line("=torch.autograd.grad({g}.sum(), {leaf}, allow_unused=True)", 2),
    Line("=torch.autograd.grad({leaf}.pow(3).sum(), {leaf}, create_graph=True)"),
    Line("{g}.register_hook(lambda grad: grad * 2)", 2),
    Line("{g}.register_hook(note('hook'))"),
    Line("{leaf}.register_post_accumulate_grad_hook(note('accumulated'))"),
    Line("{g}.retain_grad()"),
    Line("{leaf}.grad = None"),
    Line("{leaf}.grad = {same}"),
    Line("{leaf}.grad.zero_()"),
    Line("={leaf}.grad"),
    Line("{leaf}.add_({number})"),
    Line("{leaf}.data.add_({number})", 2),
    Line("{leaf}.data = {leaf}.data * 2"),
    Line("torch.set_grad_enabled({flag})", 0.3),
    Line("torch.optim.SGD([{leaf}], lr=0.1, momentum=0.5).step()"),
    Line("torch.nn.utils.clip_grad_norm_([{leaf}], 1.0)"),
    Line("torch.nn.utils.vector_to_parameters(torch.ones(99), [{leaf}])", 0.3),
    Line("={g}.grad_fn is None"),
]

MODULES: list[Row] = [
    Line("=nn.Linear({small}, {small})", 3, alone=True),
    Line("=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))", 2, alone=True),
    Line("=nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3))", 1, alone=True),
    Line("=nn.Embedding({small}, 3, padding_idx=0)", 1, alone=True),
    Line("=nn.LayerNorm({small})", alone=True),
    Line("=nn.GRU(2, 3)", 0.5, alone=True),
    Line("=nn.MultiheadAttention(4, 2)", 0.5, alone=True),
    Line("=nn.TransformerEncoderLayer(4, 2, 8)", 0.3, alone=True),
    Line("=nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))", 0.5, alone=True),
    Line("=nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))", 0.2, alone=True),
    Line("=nn.utils.spectral_norm(nn.Linear(3, 2))", 0.3, alone=True),
    Line("={parameter}", 3, alone=True),
    Line("={parameter}.data", 2, alone=True),
    Line("nn.init.normal_({parameter})", 2, alone=True),
    Line("nn.init.uniform_({parameter}, {number}, {number})", 2, alone=True),
    Line("nn.init.zeros_({parameter})", alone=True),
    Line("{parameter}.data.normal_(std={scale})", alone=True),
    Line("{parameter}.add_({number})", alone=True),
    Line("{parameter}.data = {like}", alone=True),
    Line("{parameter} = {parameter}", 2, alone=True),
    Line("{parameter} = nn.Parameter({t})", 2, alone=True),
    Line("{parameter}.requires_grad_({flag})", alone=True),
    Line("{module}.to({dtype})", 2, alone=True),
    Line("{module}.half()", alone=True),
    Line("{module}.double()", alone=True),
    Line("{module}.requires_grad_({flag})", alone=True),
    Line("{module}.eval()", 0.5, alone=True),
    Line("{module}.zero_grad()", 0.5, alone=True),
    Line(
        "{module}.apply(lambda m: m.reset_parameters() if hasattr(m, 'reset_parameters') else 0)",
        1,
        True,
    ),
    Line("{module}.register_buffer('extra', {t})", 1, alone=True),
    Line("{module}.register_parameter('more', nn.Parameter({f}))", 1, alone=True),
    Line("{module}.register_load_state_dict_pre_hook(note('before loading'))", 1, alone=True),
    Line("{module}.register_load_state_dict_post_hook(note('after loading'))", 1, alone=True),
    Line("{module}.register_forward_hook(note('forward'))", 0.5, alone=True),
    Line("=copy.deepcopy({module})", 2, alone=True),
    Line("=pickle.loads(pickle.dumps({module}))", 1, alone=True),
    Line("=stored({module}.state_dict())", 1, alone=True),
    Line("=list({module}.state_dict().values())", 1, alone=True),
    Line("{module}.load_state_dict({state})", 2, alone=True),
    Line("{module}.load_state_dict({state}, assign=True)", 2, alone=True),
    Line("load({module}, {state})", 3, alone=True),
    Line("load({module}, {partofstate})", 3, alone=True),
    Line("={module}({input})", 2, alone=True),
    Line("={module}({input}).sum().backward()", 1, alone=True),
    Line("=[x.grad for x in {module}.parameters()]", 1, alone=True),
    Line("materialize({module})", 2, alone=True),
    Line("torch.optim.SGD({module}.parameters(), lr=0.1).step()", 1, alone=True),
]

# How often a step is of each group.
GROUPS: list[tuple[float, list[Row]]] = [
    (1.5, FACTORIES),
    (2.0, DRAWS),
    (3.0, POINTWISE),
    (1.2, REDUCTIONS),
    (0.7, LINEAR),
    (3.0, MOVEMENTS),
    (3.0, VIEWS),
    (1.2, CONVERSIONS),
    (1.0, RESIZES),
    (1.0, COPIES),
    (0.7, READS),
    (1.5, AUTOGRAD),
    (1.5, MODULES),
]


def lines(group: list[Row]) -> list[Line]:
    """The lines of a group of rows."""
    return [line for row in group for line in (row.lines() if isinstance(row, Operator) else [row])]
