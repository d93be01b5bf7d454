"""Graphs are counted, and a run needs no more of them than it says."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._inductor import config as inductor_config

from ratrain.engine.engine import Engine
from ratrain.events import Compiled, Window
from ratrain.machine.compile import GraphCounter, compile_model, keep_compiled_code
from ratrain.model.build import build


def events_of(manifest, folder):
    seen = []
    Engine(manifest, checkpoints=folder / "checkpoints", device=torch.device("cpu"), emit=seen.append).run()
    return seen


@pytest.mark.parametrize("variant", ["v0", "v1"])
@pytest.mark.parametrize(("scope", "regions"), [("block", 2), ("model", 1)])
def test_a_run_needs_one_graph_to_train_and_one_to_evaluate_each_region(tiny, tmp_path, variant, scope, regions):
    # warm-up, decay, evaluations, checkpoints and micro-steps all happen within these 100 steps
    manifest = tiny(variant, f"compile.scope={scope}", "train.micro_batch=2", "eval.windows=7", "schedule.kind=wsd")
    seen = events_of(manifest, tmp_path)
    compiled = [event for event in seen if isinstance(event, Compiled)]
    assert [(event.what, event.graphs, event.expected) for event in compiled] == [
        ("train", regions, regions),
        ("evaluate", regions, regions),
    ]
    windows = [event for event in seen if isinstance(event, Window)]
    assert seen.index(compiled[0]) < seen.index(windows[0]) < seen.index(compiled[1]) < seen.index(windows[1])
    assert {window.recompiles for window in windows} == {0}
    assert (windows[-1].step, windows[-1].graphs) == (100, 2 * regions)


def test_blocks_of_one_structure_share_a_graph(tiny):
    counter, model = GraphCounter(), build(tiny("v1", "model.n_layer=5"))
    assert compile_model(model, tiny("v1", "compile.scope=block").compile) == 2
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    model(tokens, tokens).backward()
    assert counter.graphs == 2


def test_a_graph_beyond_the_expected_ones_counts_as_a_recompile(tiny):
    counter, model = GraphCounter(), build(tiny())
    regions = compile_model(model, tiny("gpt2", "compile.scope=model").compile)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    model(tokens, tokens)
    counter.expect(regions)
    assert (counter.graphs, counter.recompiles) == (1, 0)
    model(tokens[:, :4], tokens[:, :4])  # another shape
    assert (counter.graphs, counter.recompiles) == (2, 1)
    model(tokens[:, :2], tokens[:, :2])  # and no graph is made for all shapes: it would be slower for each
    assert (counter.graphs, counter.recompiles) == (3, 2)


def test_compiling_changes_no_name_and_no_loss(tiny):
    plain, compiled = build(tiny("v1")), build(tiny("v1"))
    compile_model(compiled, tiny("v1", "compile.scope=block").compile)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    tokens = torch.arange(16).view(2, 8)
    assert torch.equal(plain(tokens, tokens), compiled(tokens, tokens))


@pytest.mark.parametrize("wanted", [False, True])
def test_tiles_are_timed_on_a_gpu_where_the_manifest_asks_for_it(tiny, monkeypatch, wanted):
    model = build(tiny(), device=torch.device("meta"))  # as a GPU: no CPU's options are for it
    given = {}
    monkeypatch.setattr(model, "compile", lambda **options: given.update(options))
    section = tiny(
        "gpt2", "compile.scope=model", "compile.backend=inductor", f"compile.autotune={wanted}".lower()
    ).compile
    assert compile_model(model, section) == 1
    assert bool(given["options"]) == wanted
    # every one of them is a key of Inductor's: torch refuses others
    torch.compile(lambda x: x, backend="inductor", options=given["options"])


def test_off_compiles_nothing(tiny):
    counter, model = GraphCounter(), build(tiny())
    assert compile_model(model, tiny("gpt2", "compile.scope=off").compile) == 0
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    model(tokens, tokens)
    assert (counter.graphs, counter.recompiles, counter.cached) == (0, 0, False)


def test_what_no_cache_served_is_not_called_cached(tiny):
    counter, model = GraphCounter(), build(tiny())
    compile_model(model, tiny("gpt2", "compile.scope=model").compile)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    model(tokens, tokens)
    assert counter.graphs == 1
    assert not counter.cached  # the eager backend keeps nothing


class Breaks(torch.nn.Module):
    def forward(self, x, *context):
        torch._dynamo.graph_break()
        return x


@pytest.mark.parametrize("scope", ["block", "model"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_patch_that_breaks_the_graph_fails_at_its_first_step_wherever_it_is(tiny, scope, layer):
    model = build(tiny())
    model.get_submodule(f"blocks.{layer}.attn").register_module("blend", Breaks())
    compile_model(model, tiny("gpt2", f"compile.scope={scope}").compile)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(Unsupported):
        model(tokens, tokens)


@pytest.mark.parametrize(("given", "kept"), [(None, True), (False, False)])
def test_what_a_user_says_of_vector_instructions_stays_and_nobody_tries_them_out_otherwise(
    monkeypatch, tmp_path, given, kept
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with inductor_config.patch({"cpp.vec_isa_ok": given}):
        keep_compiled_code()
        assert inductor_config.cpp.vec_isa_ok is kept
