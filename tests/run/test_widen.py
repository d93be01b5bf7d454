"""A widened GPT-2 costs what the variant does, to half a hidden channel per layer."""

import pytest

from ratrain.model.build import build
from ratrain.model.count import count
from ratrain.run.widen import widen


def costs(manifest):
    cost = count(build(manifest, device="meta"))
    return {"parameters": cost.parameters, "flops": cost.forward_flops_per_token}


@pytest.mark.parametrize("by", ["parameters", "flops"])
@pytest.mark.parametrize("name", ["v1", "v6", "v10", "output_gate", "tied_ra", "double_attention"])
@pytest.mark.parametrize("scale", ["tiny", "laptop", "gpt2_124m"])
def test_no_other_width_is_nearer(tiny, name, by, scale):
    variant, base = tiny(name, scale=scale), tiny(scale=scale)
    widened = widen(variant, base, by=by)
    goal, hidden, spec = costs(variant)[by], widened.manifest.model.n_hidden, base.model

    def off(width):
        model = spec.model_copy(update={"mlp_ratio": width / spec.n_embd})
        return abs(costs(base.model_copy(update={"model": model}))[by] - goal)

    assert widened.manifest.patch == {}
    assert (widened.goal, widened.cost) == (goal, costs(widened.manifest)[by])
    assert off(hidden) <= min(off(hidden - 1), off(hidden + 1))


def test_v10_is_met_by_six_times_the_width(tiny):
    assert widen(tiny("v10"), tiny(), by="flops").manifest.model.n_hidden == 6 * tiny().model.n_embd


def test_what_is_printed_is_a_manifest_of_that_cost(ratrain, tmp_path, tiny):
    code, text, _ = ratrain("widen", "output_gate", "--scale", "study")
    (tmp_path / "wide.toml").write_text(text)
    widened = widen(tiny("output_gate", scale="study"), tiny(scale="study"), by="parameters")
    assert code == 0
    assert costs(tiny(str(tmp_path / "wide.toml"), scale="study"))["parameters"] == widened.cost
    assert ratrain("check", "gpt2", tmp_path / "wide.toml", "--scale", "study")[0] == 0


def test_one_that_would_be_the_base_says_so(ratrain, tmp_path):
    text = ratrain("widen", "v1")[1]
    (tmp_path / "wide.toml").write_text(text)
    assert "gpt2 itself is the control of v1" in text
    assert ratrain("check", "gpt2", tmp_path / "wide.toml")[0] == 0
