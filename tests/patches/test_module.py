"""Modules from elsewhere: they compute what they compute alone, start reproducibly, and are switched, counted, decoded
and refused like any mechanism."""

from __future__ import annotations

import importlib
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ratrain as ratrain_api
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import ActivationSection, Span
from ratrain.contracts import COMPILED, SMALL, contracts
from ratrain.contracts.verify import verify
from ratrain.errors import Exit, ManifestError
from ratrain.model.build import build, switches
from ratrain.model.count import count
from ratrain.model.generate import decode
from ratrain.recipe.groups import group_parameters
from ratrain.registry import is_ours, optim_kinds, patch_kinds, run_files
from ratrain.storage.code_digests import code_digests

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "modules"
SIZES = ("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=12")
LATER = ActivationSection(kind="after", after=Span(steps=1))

LAYERS = """
import random
import numpy as np
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return self.linear(x)

class Tied(Plain):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(16, 16)
        self.other.weight = self.linear.weight

    def forward(self, x):
        return self.other(torch.relu(self.linear(x)))

class Drawn(Plain):
    def __init__(self):
        print("constructed")
        torch.manual_seed(7)
        super().__init__()
        self.register_buffer("table", torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]))

class NamedLikeHooks(Plain):
    decayed, constructed, gradual = ("nothing",), ("linear",), None

    def __init__(self):
        super().__init__()
        self.register_buffer("s", torch.tensor(3.0))

    def penalty(self, x):
        raise AssertionError("called")

    def settle(self, x):
        raise AssertionError("called")

    def flops_per_token(self):
        raise AssertionError("called")

class CausalConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(16, 16, 3, padding=2, groups=16)

    def forward(self, x):
        return self.conv(x.mT)[..., : x.shape[1]].mT

class NotOnMeta(Plain):
    def forward(self, x):
        return self.linear(x) * (1 + 0 * int(x.numel() and x.sum().item()))

class Wide(Plain):
    def forward(self, x):
        return self.linear(x).double()

class Short(Plain):
    def forward(self, x):
        return self.linear(x)[:, :1]

class Lazy(Plain):
    def forward(self, x):
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(16))
        return self.linear(x) * self.mask

class Unfilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(16, 16))

    def forward(self, x):
        return x @ self.weight

class LazyLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(16)

class Nothing(Plain):
    def forward(self, x):
        return None

class Stateful(Plain):
    def __init__(self, width=16):
        super().__init__(width)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls

class Leaving(Plain):
    def __init__(self):
        raise SystemExit(3)

class GraphBreak(Plain):
    def forward(self, x):
        torch._dynamo.graph_break()
        return self.linear(x)

def number(**options):
    return 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "layers.py").write_text(LAYERS)
    (tmp_path / "mine.toml").write_text('id = "mine"\nextends = "gpt2.toml"\n[patch.module]\nuse = "layers.py:Plain"\n')
    return tmp_path


@pytest.fixture
def mine(folder):
    """The manifest of a module of `layers.py`, or of any other with these overrides."""

    def mine(use="layers.py:Plain", *overrides, sizes=SIZES):
        keys = (*sizes, "compile.scope=off", f'patch.module.use="{use}"', *overrides)
        return of(folder / "mine.toml", *keys)

    return mine


def of(file, *overrides):
    source = read_source(file, scale="tiny", overrides=overrides)
    return resolve(source, patches=patch_kinds(beside=source.files), optimizers=optim_kinds())


def faults(make):
    with pytest.raises(ManifestError) as refused:
        build(make())
    return [(fault.key, fault.message) for fault in refused.value.faults]


MHA = (
    'patch.module.args={embed_dim="$n_embd", num_heads="$n_head", batch_first=true}',
    'patch.module.call={query="$x", key="$x", value="$x", attn_mask="$causal_mask", need_weights=false}',
)


@pytest.fixture
def attention(mine):
    return lambda *more: mine("torch.nn:MultiheadAttention", *MHA, *more)


@pytest.fixture
def transformers(monkeypatch):
    """transformers, imported where the checkout's `kernels` does not pass for another package."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
    library = pytest.importorskip("transformers")
    importlib.import_module("transformers.activations")
    return library


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def tokens_of(manifest, rows=2):
    vocab, length = manifest.model.vocab_size, manifest.model.block_size
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(1))


# -- what is computed --------------------------------------------------------------------------------------------------


def test_torch_s_attention_computes_in_the_model_what_it_computes_alone(attention):
    layer = build(attention()).blocks[1].attn
    oracle = nn.MultiheadAttention(16, 2, batch_first=True)
    oracle.load_state_dict(layer.module.state_dict())
    x = normal(3, 12, 16)
    later = torch.ones(12, 12).triu(1).bool()
    expected, _ = oracle(x, x, x, attn_mask=later)
    found, state = layer(x, None)
    torch.testing.assert_close(found, expected)
    assert state is None


def test_torch_s_attention_with_our_weights_computes_our_attention(attention, tiny):
    ours, theirs = build(tiny("gpt2", *SIZES)).double().blocks[0].attn, build(attention()).double().blocks[0].attn
    with torch.no_grad():
        theirs.module.in_proj_weight.copy_(ours.qkv.weight)
        theirs.module.in_proj_bias.copy_(ours.qkv.bias.normal_())
        theirs.module.out_proj.weight.copy_(ours.proj.weight)
        theirs.module.out_proj.bias.copy_(ours.proj.bias.normal_())
    x = normal(2, 12, 16).double()
    torch.testing.assert_close(theirs(x, None)[0], ours(x, None)[0], rtol=0, atol=1e-12)


def test_transformers_gpt2_attention_with_our_weights_computes_our_attention(transformers, tiny):
    ours, theirs = (build(m).blocks[0].attn for m in (tiny("gpt2", *SIZES), of(DOCS / "gpt2_attention.toml", *SIZES)))
    with torch.no_grad():
        for mine, its in ((ours.qkv, theirs.module.c_attn), (ours.proj, theirs.module.c_proj)):
            its.weight.copy_(mine.weight.T)
            its.bias.copy_(mine.bias.normal_())
    x = normal(2, 12, 16)
    torch.testing.assert_close(theirs(x, None)[0], ours(x, None)[0], rtol=0, atol=1e-6)


def test_rotary_tables_are_those_of_transformers(transformers):
    from ratrain.patches.foreign.layer import rope

    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    config = transformers.LlamaConfig(hidden_size=16, num_attention_heads=2, max_position_embeddings=12)
    x = normal(2, 12, 16)
    expected = llama.LlamaRotaryEmbedding(config)(x, torch.arange(12)[None])
    torch.testing.assert_close(rope(x, 8), expected)


def test_the_tensors_of_a_call():
    from ratrain.patches.foreign.layer import causal_bias, causal_mask, positions

    x = normal(2, 5, 16)
    later = torch.tensor([[j > i for j in range(5)] for i in range(5)])
    assert causal_mask(x, 8).equal(later)
    assert causal_bias(x, 8)[0, 0].equal(torch.where(later, float("-inf"), 0.0))
    assert positions(x, 8).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("target", "site"), [("blocks.*.mlp", "mlp"), ("blocks.*", ""), ("blocks.1.attn", "attn")])
def test_a_module_stands_in_place_of_any_part(mine, target, site):
    model = build(mine("layers.py:Plain", f'patch.module.target="{target}"'))
    part = model.get_submodule(f"blocks.1.{site}".rstrip("."))
    x = normal(2, 12, 16)
    out = part(x) if site == "mlp" else part(x, None)[0]
    torch.testing.assert_close(out, nn.functional.linear(x, part.module.linear.weight, part.module.linear.bias))
    assert set(model.claimed) == {f"blocks.{k}.{site}".rstrip(".") for k in ((1,) if "*" not in target else (0, 1))}


def test_sizes_of_the_model_and_tables_of_objects_fill_the_arguments(mine):
    nested = 'patch.module.args={num_layers="$n_layer", encoder_layer={use="torch.nn:TransformerEncoderLayer", '
    nested += 'd_model="$n_embd", nhead="$n_head", dim_feedforward="$n_hidden", dropout=0.0, batch_first=true}}'
    manifest = mine("torch.nn:TransformerEncoder", nested, 'patch.module.call={mask="$causal_mask"}')
    module = build(manifest).blocks[0].attn.module
    assert len(module.layers) == 2
    assert module.layers[0].linear1.weight.shape == (64, 16)


def test_another_dtype_is_cast_to_that_of_the_input(mine):
    layer = build(mine("layers.py:Wide")).blocks[0].attn
    assert layer(normal(1, 12, 16), None)[0].dtype == torch.float32


# -- the start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Plain", "Tied", "Drawn"])
def test_two_builds_are_equal_and_leave_global_generators_alone(mine, name, capsys):
    manifest = mine(f"layers.py:{name}")
    exact = torch.are_deterministic_algorithms_enabled()
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_default_dtype())
    first, second = (dict(build(manifest).state_dict()) for _ in range(2))
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_default_dtype())
    assert before[0].equal(after[0])
    assert before[1:] == after[1:]
    assert all(first[key].equal(second[key]) for key in first)
    assert torch.are_deterministic_algorithms_enabled() == exact
    assert "constructed" not in capsys.readouterr().out


def test_an_unfilled_tensor_is_found_in_the_settings_of_a_run_too(mine, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    ((key, _),) = faults(lambda: mine("layers.py:Unfilled"))
    assert key == "patch.module.use"
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_layers_and_seeds_start_apart_and_the_base_starts_as_without(mine, tiny):
    model, other = build(mine()), build(mine("layers.py:Plain", "seed.init=2"))
    weights = [block.attn.module.linear.weight for one in (model, other) for block in one.blocks]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4
    base = build(tiny("gpt2", *SIZES)).state_dict()
    shared = {key: tensor for key, tensor in model.state_dict().items() if ".attn." not in key}
    assert shared
    assert all(tensor.equal(base[key]) for key, tensor in shared.items())


def test_a_shared_parameter_stays_shared(mine):
    model = build(mine("layers.py:Tied"))
    module = model.blocks[0].attn.module
    assert module.other.weight is module.linear.weight
    plain = count(build(mine())).parameters
    assert count(model).parameters == plain + 2 * 16  # the second bias in each of two layers


def test_on_the_meta_device_nothing_is_allocated(attention):
    model = build(attention(), device="meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert count(model) == count(build(attention()))


# -- the switch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["blocks.*.attn", "blocks.*.mlp", "blocks.*"])
def test_switched_off_it_is_the_base_to_the_bit_and_switched_on_the_module_alone(mine, tiny, target):
    manifest = mine("layers.py:Plain", f'patch.module.target="{target}"')
    patch = manifest.patch["module"].model_copy(update={"activation": LATER})
    switched = build(manifest.model_copy(update={"patch": {"module": patch}}))
    alone, base = build(manifest), build(tiny("gpt2", *SIZES))
    tokens = tokens_of(manifest)
    (buffers,) = switches(switched).values()
    assert len(buffers) == 2
    for value, same in ((0.0, base), (1.0, alone)):
        for buffer in buffers:
            buffer.fill_(value)
        assert switched.logits(tokens).equal(same.logits(tokens))


def test_the_schedule_of_the_manifest_counts_too_and_at_once_keeps_nothing_of_the_base(mine):
    ramp = ("activation.kind=ramp", "activation.over={fraction=0.5}")
    switched, alone = build(mine("layers.py:Plain", *ramp)), build(mine())
    assert switched.blocks[0].attn.old is not None
    assert switches(switched)["module"]
    assert alone.blocks[0].attn.old is None
    assert not switches(alone)["module"]
    assert count(switched).forward_flops_per_token > count(alone).forward_flops_per_token


# -- costs and groups --------------------------------------------------------------------------------------------------


def test_flops_and_cache_of_torch_s_attention_are_those_of_ours(attention, tiny):
    theirs, ours = count(build(attention())), count(build(tiny("gpt2", *SIZES)))
    assert theirs.forward_flops_per_token == ours.forward_flops_per_token
    assert theirs.parameters == ours.parameters
    assert theirs.key_elements_per_token == 0
    assert theirs.value_elements_per_token == 2 * 16  # the input of each of two layers


def test_flops_of_one_matrix_are_counted_by_hand(mine):
    model = build(mine())
    head, mlp = 2 * model.wte.weight.numel(), 2 * 2 * 16 * 64
    assert count(model).forward_flops_per_token == head + 2 * (2 * 16 * 16 + mlp)


def test_flops_are_rounded_to_whole_ones_per_token(mine):
    model = build(mine("layers.py:CausalConv"))
    assert model.blocks[0].attn.flops_per_token(model.spec) == round(2 * 16 * 3 * (12 + 2) / 12)


def test_matrices_are_decayed_and_vectors_are_not(attention):
    matrices, rest = group_parameters(build(attention()), 0.1)
    own = {name.partition(".attn.")[2] for name in matrices.names if ".attn." in name}
    assert own == {"module.in_proj_weight", "module.out_proj.weight"}
    assert {"blocks.0.attn.module.in_proj_bias", "blocks.0.attn.module.out_proj.bias"} <= set(rest.names)


def test_names_like_our_hooks_are_not_hooks(mine):
    model = build(mine("layers.py:NamedLikeHooks"))
    assert not switches(model)["module"]
    assert model.blocks[0].attn.module.s == 3
    assert not model.priced
    assert count(model) == count(build(mine()))
    matrices, _ = group_parameters(model, 0.1)
    assert "blocks.0.attn.module.linear.weight" in matrices.names


# -- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["blocks.*.attn", "blocks.*.mlp", "blocks.*"])
@pytest.mark.parametrize("activation", [None, LATER], ids=["alone", "with the base's part"])
def test_decoding_equals_the_whole_pass_wherever_a_module_mixes_tokens(mine, target, activation):
    manifest = mine("layers.py:CausalConv", f'patch.module.target="{target}"')
    patch = manifest.patch["module"].model_copy(update={"activation": activation})
    model = build(manifest.model_copy(update={"patch": {"module": patch}})).double().eval()
    for buffer in switches(model)["module"]:
        buffer.fill_(0.5)
    tokens = tokens_of(manifest)
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-12)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "key", "message"),
    [
        ("torch.nn:Nothing", "use", "torch.nn has no Nothing"),
        ("torch.nowhere:X", "use", "torch.nowhere: cannot be imported: ModuleNotFoundError"),
        ("torch:zeros", "args", "torch:zeros refuses them"),
        ("layers.py:number", "use", "layers.py:number returns int, which is no nn.Module"),
        ("collections:OrderedDict", "use", "collections:OrderedDict is no nn.Module"),
        ("layers.py:Leaving", "args", "refuses them: SystemExit: 3"),
        ("layers.py:LazyLayer", "use", "has linear.weight, linear.bias without a shape"),
        ("layers.py:Short", "use", "returns [1, 1, 16] for x [1, 12, 16]; expected the same shape"),
        ("layers.py:Lazy", "use", "creates mask in its first call"),
        ("layers.py:Nothing", "call", "it returns NoneType; expected a tensor"),
        ("layers.py:Unfilled", "use", "the constructor of Unfilled leaves weight without a value"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_fault(mine, use, key, message):
    ((found, text),) = faults(lambda: mine(use))
    assert found == f"patch.module.{key}"
    assert message in text


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ('patch.module.use="fla.layers:GatedLinearAttention"', "use", "pip install flash-linear-attention"),
        ('patch.module.use="none.py:X"', "use", "'none.py': no such file beside the manifest"),
        ('patch.module.use="nocolon"', "use", "expected PACKAGE.MODULE:CLASS or FILE.py:CLASS"),
        ('patch.module.args.width="$n_embed"', "args", "nothing is called '$n_embed'; did you mean '$n_embd'?"),
        ('patch.module.args.width="$x"', "args", "nothing is called '$x'; expected $n_layer"),
        ("patch.module.args.width=nan", "args", "must be finite"),
        ("patch.module.args.depth=1", "args", "unexpected keyword argument 'depth'"),
        ("patch.module.args.width={use=3}", "args", "width.use: expected PACKAGE.MODULE:CLASS"),
        ('patch.module.args.width={use="torch:nothing"}', "args.width.use", "torch has no nothing"),
        ('patch.module.call.mask="$causal_mask"', "call", "unexpected keyword argument 'mask'"),
        ('patch.module.call.y="$masks"', "call", "nothing is called '$masks'"),
        ('patch.module.target="blocks.*.norm_1"', "target", "expected blocks.*.attn, blocks.*.mlp or blocks.*"),
    ],
)
def test_nonsense_in_a_key_is_one_fault_of_that_key(folder, override, key, message):
    ((found, text),) = faults(lambda: of(folder / "mine.toml", *SIZES, override))
    assert found == f"patch.module.{key}"
    assert message in text


def test_a_file_that_cannot_be_imported_is_told(mine, folder):
    (folder / "layers.py").write_text("import helper_beside_it")
    ((key, text),) = faults(mine)
    assert key == "patch.module.use"
    assert "No module named 'helper_beside_it'; a file beside the manifest holds all of its code" in text


def test_a_module_that_runs_on_no_meta_device_is_counted_on_the_cpu(mine):
    assert count(build(mine("layers.py:NotOnMeta"), device="meta")) == count(build(mine()))


# -- the source --------------------------------------------------------------------------------------------------------


def test_the_file_and_the_version_of_a_package_are_on_record(mine, attention, folder):
    manifest = mine()
    assert not is_ours(manifest.patch["module"])
    assert run_files(manifest.patch.values()) == {"modules/layers.py": (folder / "layers.py").resolve()}
    before = code_digests(manifest)
    (folder / "layers.py").write_text(LAYERS + "\n")
    assert {name for name, digest in code_digests(mine()).items() if digest != before[name]} == {"modules/layers.py"}
    digests = code_digests(attention())
    assert digests["package torch"] == torch.__version__
    assert {"ratrain/patches/module.py", "ratrain/patches/foreign/recipe.py"} <= digests.keys()


def test_a_module_of_the_path_without_a_version_is_digested(mine, tmp_path, monkeypatch):
    place = tmp_path / "path" / "own_package_of_layers"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "parts.py").write_text(LAYERS)
    monkeypatch.syspath_prepend(tmp_path / "path")
    manifest = mine("own_package_of_layers.parts:Plain")
    assert build(manifest).blocks[0].attn.module.linear.weight.shape == (16, 16)
    before = code_digests(manifest)["package own_package_of_layers"]
    (place / "parts.py").write_text(LAYERS + "\n")
    assert code_digests(manifest)["package own_package_of_layers"] != before


def test_another_content_of_a_file_is_another_class(mine, folder):
    first = type(build(mine()).blocks[0].attn.module)
    assert type(build(mine()).blocks[0].attn.module) is first
    (folder / "layers.py").write_text(LAYERS.replace("return self.linear(x)\n", "return 2 * self.linear(x)\n", 1))
    assert type(build(mine()).blocks[0].attn.module) is not first


RUN = ("--scale", "tiny", "--device", "cpu", "--set", "compile.scope=off", "--set", "eval.windows=2")


@pytest.fixture
def cwd(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    file = folder / "mine.toml"
    file.write_text(file.read_text() + 'args = { width = "$n_embd" }\n')
    yield folder
    torch.use_deterministic_algorithms(False)


def test_a_run_stands_alone_with_its_file_and_notices_a_change(cwd, ratrain):
    command = ("mine.toml", *RUN, "--set", "train.budget.steps=2")
    assert ratrain(*command)[0] == 0
    (run,) = (cwd / "runs").glob("*/s1")
    assert (run / "modules" / "layers.py").read_text() == LAYERS
    (cwd / "layers.py").write_text(LAYERS + "\n")
    code, _, err = ratrain(*command)
    assert code == Exit.BAD_MANIFEST
    assert "modules/layers.py: changed since" in err
    (cwd / "layers.py").unlink()
    moved = shutil.move(run, cwd / "moved")
    code, out, _ = ratrain("sample", moved, "--tokens", "3")
    assert code == 0
    assert out


def test_a_leaking_module_is_refused_before_a_run(ratrain, tmp_path):
    code, _, err = ratrain(DOCS / "leaks.toml", *RUN, "--out", tmp_path)
    assert code == Exit.BAD_MANIFEST
    assert "patch.module: the model sees the future" in err
    assert not list(tmp_path.iterdir())


def test_a_module_that_depends_on_earlier_calls_is_refused_before_a_run(cwd, ratrain):
    code, _, err = ratrain("mine.toml", *RUN, "--set", "patch.module.use=layers.py:Stateful")
    assert code == Exit.BAD_MANIFEST
    assert "patch.module: the model " in err


def test_a_module_that_breaks_the_graph_is_told_the_way_out(cwd, ratrain):
    graph = ("--set", "compile.scope=block", "--set", "compile.backend=eager", "--set", "train.budget.steps=2")
    code, _, err = ratrain("mine.toml", *RUN, *graph, "--set", "patch.module.use=layers.py:GraphBreak")
    assert code == Exit.BAD_MANIFEST
    assert "patch.module: cannot be compiled to one graph" in err
    assert "--set compile.scope=off" in err
    torch._dynamo.reset()


# -- examples ----------------------------------------------------------------------------------------------------------

NEEDS = {"gpt2_attention": "transformers", "llama_attention": "transformers", "llama_block": "transformers"}
SOUND = ("gpt2_attention", "llama_attention", "llama_block", "linear_recurrence", "swiglu", "two_modules")


@pytest.mark.thorough
@pytest.mark.parametrize("claim", contracts())
@pytest.mark.parametrize("name", SOUND)
def test_every_contract_holds_for_the_examples(name, claim, request):
    if name in NEEDS:
        request.getfixturevalue(NEEDS[name])
    contracts()[claim](of(DOCS / f"{name}.toml", *SMALL))


def test_the_example_that_leaks_is_found():
    broken = {verdict.claim for verdict in verify(of(DOCS / "leaks.toml", *SMALL)) if verdict.fault}
    assert {"no position sees a later token", "no gradient comes from a later token"} <= broken


def test_a_recurrent_layer_of_torch_is_causal_and_decodes(mine):
    manifest = of(DOCS / "gru.toml", *SIZES)
    model = build(manifest).double().eval()
    tokens = tokens_of(manifest)
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-12)
    edited = tokens.clone()
    edited[:, 6:] += 1
    assert model.logits(edited)[:, :6].equal(model.logits(tokens)[:, :6])


def test_contracts_on_compiled_code_are_left_out_if_the_manifest_compiles_nothing(cwd):
    (cwd / "mine.toml").write_text((cwd / "mine.toml").read_text().replace("Plain", "GraphBreak"))
    broken = [verdict.claim for verdict in ratrain_api.verify("mine.toml") if verdict.fault]
    assert sorted(broken) == sorted(COMPILED)
    (cwd / "mine.toml").write_text((cwd / "mine.toml").read_text() + '[compile]\nscope = "off"\n')
    verdicts = list(ratrain_api.verify("mine.toml"))
    assert not [verdict.claim for verdict in verdicts if verdict.fault]
    assert {verdict.claim for verdict in verdicts} & {*contracts()} == {*contracts()} - {*COMPILED}


def test_an_example_of_a_gpu_is_refused_with_the_package_to_install():
    with pytest.raises(ManifestError, match="pip install flash-linear-attention"):
        of(DOCS / "gated_linear_attention.toml")
