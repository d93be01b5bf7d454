"""A variant on another base: `--base`, and the same by `extends`."""

from __future__ import annotations

from ratrain.config.identity import recipe_hash
from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.registry import optim_kinds, patch_kinds


def on(name, base="modern", *overrides):
    source = read_source(find_manifest(name), base=find_manifest(base), overrides=overrides)
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


def test_a_variant_keeps_its_patches_on_another_base():
    manifest = on("v9")
    assert manifest.id == "v9-modern"
    assert (manifest.model.pos, manifest.model.act, manifest.model.bias) == ("rope", "relu2", False)
    assert manifest.patch["unified_ra"].rank == 2


def test_what_the_variant_itself_says_wins_over_the_base():
    assert on("v10").model.mlp_ratio == 6


def test_overrides_win_over_the_base():
    assert on("v9", "modern", "model.pos=learned").model.pos == "learned"


def test_extending_the_base_first_means_the_same(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('id = "mine"\nextends = ["modern.toml", "unified_ra_v9.toml"]\n')
    mine = resolve(read_source(file), patches=patch_kinds(), optimizers=optim_kinds())
    assert recipe_hash(mine) == recipe_hash(on("v9"))


def test_the_base_on_itself_and_gpt2_on_it_are_the_base():
    for name in ("modern", "gpt2"):
        assert on(name).id == "modern"
        assert recipe_hash(on(name)) == recipe_hash(on("modern"))


def test_the_command_line_takes_it(ratrain):
    code, out, _ = ratrain("show", "v9", "--base", "modern", "--scale", "tiny")
    assert code == 0
    assert "v9-modern" in out
    assert "rope" in out


def test_a_base_that_does_not_exist_is_refused(ratrain):
    code, _, err = ratrain("show", "v9", "--base", "modren")
    assert code == 66
    assert "did you mean 'modern'" in err
