"""Checkpoints in the layouts of a network's authors load, and as timm converts them."""

from __future__ import annotations

import dataclasses
import importlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import image_batch

import featnet
from featnet.errors import CheckpointError

Rule = tuple[str, Any]
BLOCKS: Rule = (r"^stages\.(\d)\.blocks\.(\d+)", r"stages.\1.\2")
FLORENCE: tuple[Rule, ...] = (
    (r"^stem\.", "convs.0."),
    (r"^stages\.(\d)\.downsample\.", r"convs.\1."),
    (r"^stages\.(\d)\.blocks\.", r"blocks.\1."),
)


@dataclasses.dataclass
class Layout:
    """A network in small, and what its authors call its tensors.

    Attributes:
        module: timm's, whose ``checkpoint_filter_fn`` is asked.
        rules: for ``re.sub``, from our names to theirs; all are applied, in order.
        prefix: before every name.
        flat: the 1x1 convolutions that are linear layers there.
    """

    name: str
    module: str
    rules: Sequence[Rule]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    flat: str = r"$^"

    def theirs(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for key, value in state.items():
            value = value.flatten(1) if re.search(self.flat, key) and value.ndim == 4 else value
            for pattern, new in self.rules:
                key = re.sub(pattern, new, key)
            found[self.prefix + key] = value
        return found


def counted(name: str, depths: Sequence[int]) -> Rule:
    """Blocks that are counted over all stages."""
    before = [sum(depths[:i]) for i in range(len(depths))]
    return (r"^stages\.(\d)\.blocks\.(\d+)", lambda m: f"{name}.{before[int(m[1])] + int(m[2])}")


def multiscale(depths: Sequence[int]) -> tuple[Rule, ...]:
    """MViTv2's names."""
    return (
        counted("blocks", depths),
        (r"\.shortcut_proj_(attn|mlp)\.", ".proj."),
        (r"^head\.fc\.", "head.projection."),
    )


# LowFormer's and CPUBone's lists are modules that hold their parts in an ``op_list``
LISTS: tuple[Rule, ...] = (
    (r"^stem\.", "backbone.input_stem.op_list."),
    (r"^stages\.(\d)\.", r"backbone.stages.\1.op_list."),
    (r"\.conv_proj\.conv\.", ".conv_proj.0."),
    (r"\.conv_proj\.norm\.", ".conv_proj.1."),
    (r"\.pwise\.", ".pwise.0."),
)
LOWFORMER: tuple[Rule, ...] = (
    *LISTS,
    (r"\.mlp\.", ".total.0.1."),
    (r"\.local\.", ".total.1."),
    (r"^in_conv\.", "head.op_list.0."),
    (r"^pre_classifier\.0\.", "head.op_list.2.linear."),
    (r"^pre_classifier\.1\.", "head.op_list.2.norm."),
    (r"^classifier\.", "head.op_list.3.linear."),
)
CPUBONE: tuple[Rule, ...] = (
    *LISTS,
    (r"^head\.in_conv\.", "head.op_list.0."),
    (r"^head\.pre_classifier\.", "head.op_list.2."),
    (r"^head\.classifier\.", "head.op_list.3."),
)
MULTISCALE = dict(embed_dim=16, img_size=64)
SMALL = dict(depths=(1, 1, 2, 1))
LAYOUTS = {
    "PoolFormer": Layout(
        "poolformer_s12",
        "metaformer",
        (
            (r"^stem\.conv\.", "patch_embed.proj."),
            (r"^stages\.(\d)\.blocks\.", lambda m: f"network.{2 * int(m[1])}."),
            (r"^stages\.(\d)\.downsample\.conv\.", lambda m: f"network.{2 * int(m[1]) - 1}.proj."),
            (r"layer_scale(\d)\.scale", r"layer_scale_\1"),
            (r"^head\.norm\.", "norm."),
            (r"^head\.fc\.", "head."),
        ),
        dict(SMALL),
    ),
    "MetaFormer": Layout(
        "caformer_s18",
        "metaformer",
        (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"^(downsample_layers\.0)\.norm\.", r"\1.post_norm."),
            (r"^(downsample_layers\.[123])\.norm\.", r"\1.pre_norm."),
            BLOCKS,
            (r"^head\.norm\.", "norm."),
            (r"^head\.fc\.", "head."),
        ),
        dict(SMALL),
        flat=r"mlp\.|pwconv",
    ),
    "EdgeNeXt": Layout(
        "edgenext_xx_small",
        "edgenext",
        (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            BLOCKS,
            ("conv_dw", "dwconv"),
            (r"mlp\.fc", "pwconv"),
            (r"^head\.norm\.", "norm."),
            (r"^head\.fc\.", "head."),
        ),
    ),
    "MambaOut": Layout(
        "mambaout_femto",
        "mambaout",
        (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            BLOCKS,
            (r"^head\.norm\.", "norm."),
            (r"^head\.pre_logits\.fc\.", "head.fc1."),
            (r"^head\.pre_logits\.norm\.", "head.norm."),
            (r"^head\.fc\.", "head.fc2."),
        ),
        dict(SMALL),
    ),
    "FocalNet": Layout(
        "focalnet_huge_fl4",
        "focalnet",
        (
            (r"^stem\.", "patch_embed."),
            (r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
            (r"\.ls(\d)\.gamma", r".gamma_\1"),
            (r"\.norm(\d)_post\.", r".norm\1."),
            (r"modulation\.norm\.", "modulation.ln."),
            (r"^head\.fc\.", "head."),
        ),
        dict(SMALL, embed_dim=16),
        flat=r"modulation\.(f|proj)\.|mlp\.",
    ),
    "DaViT": Layout(
        "davit_tiny",
        "davit",
        (
            (r"^stem\.", "patch_embeds.0."),
            (r"^stages\.(\d)\.downsample\.", r"patch_embeds.\1."),
            (r"^(patch_embeds\.\d)\.conv\.", r"\1.proj."),
            (r"^stages\.(\d)\.blocks\.", r"main_blocks.\1."),
            (r"\.cpe(\d)\.", lambda m: f".cpe.{int(m[1]) - 1}."),
            (r"^head\.norm\.", "norms."),
            (r"^head\.fc\.", "head."),
        ),
        dict(depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192)),
    ),
    "Florence-2": Layout(
        "davit_base_fl",
        "davit",
        (
            *FLORENCE,
            (r"^(convs\.\d)\.conv\.", r"\1.proj."),
            (r"(spatial)_block\.norm1\.", r"\1_block.window_attn.norm."),
            (r"(channel)_block\.norm1\.", r"\1_block.channel_attn.norm."),
            (r"(spatial)_block\.attn\.", r"\1_block.window_attn.fn."),
            (r"(channel)_block\.attn\.", r"\1_block.channel_attn.fn."),
            (r"\.norm2\.", ".ffn.norm."),
            (r"\.mlp\.", ".ffn.fn.net."),
            (r"\.cpe(\d)\.proj\.", r".conv\1.fn.dw."),
        ),
        dict(depths=(1, 1, 1, 1), embed_dims=(32, 64, 128, 256), num_classes=0),
        prefix="vision_tower.",
    ),
    "MViTv2": Layout("mvitv2_tiny", "mvitv2", multiscale((1, 2, 5, 2)), MULTISCALE),
    "MViTv2 L": Layout("mvitv2_large", "mvitv2", multiscale((2, 6, 36, 4)), MULTISCALE),
    "Next-ViT": Layout(
        "nextvit_small",
        "nextvit",
        (
            counted("features", (3, 4, 10, 3)),
            (r"\.mlp\.fc", ".mlp.conv"),
            (r"^head\.fc\.", "proj_head.0."),
        ),
    ),
    "LowFormer": Layout("lowformer_b0", "lowformer", (*LOWFORMER, (r"\.attn\.", ".total.0.0."))),
    "LowFormer E3": Layout("lowformer_e3", "lowformer", (*LOWFORMER, (r"\.attn\.", ".total.0."))),
    "CPUBone": Layout("cpubone_nano", "cpubone", CPUBONE),
    "PiT": Layout(
        "pit_ti_224",
        "pit",
        ((r"^transformers\.(\d)\.pool\.", lambda m: f"pools.{int(m[1]) - 1}."),),
        dict(depth=(1, 1, 1)),
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_original_names_load(kind: str, tmp_path: Path, timm: Any) -> None:
    layout = LAYOUTS[kind]
    model = featnet.create_model(layout.name, **layout.options).eval()
    helpers.fill_noise(model)
    state = model.state_dict()
    old = layout.theirs(state)
    if layout.prefix:
        old = {k: v for k, v in old.items() if not k.startswith(f"{layout.prefix}head.")}
        old["language_model.weight"] = torch.zeros(2)
    assert old.keys() != state.keys()
    with torch.device("meta"):
        peer = helpers.peer_model(layout.name)
    convert = importlib.import_module(f"timm.models.{layout.module}").checkpoint_filter_fn
    found = model.convert_state_dict(old)
    assert found.keys() == convert(dict(old), peer).keys()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    path = tmp_path / "original.pth"
    torch.save({"state_dict": old}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the file has not: the norm before the classifier
        other = featnet.create_model(layout.name, checkpoint_path=path, **layout.options).eval()
    x = image_batch(*(model.img_size or (64, 64)))
    with torch.inference_mode():
        levels = [m.forward_intermediates(x, intermediates_only=True) for m in (model, other)]
    assert all(torch.equal(a, b) for a, b in zip(*levels, strict=True))


def test_biases_before_norms_become_part_of_them(timm: Any) -> None:
    """Convolutions of CPUBone's robust checkpoints have a bias that the networks have not."""
    name = "cpubone_b0_bfrobust"
    model = featnet.create_model(name)
    helpers.fill_noise(model)
    state = model.state_dict()
    old, biases = dict(state), 0
    for key in state:
        place, found, _ = key.partition(".norm.running_mean")
        if found and re.search(r"\.total\.1\.main\.(inverted|depth)_conv$", place):
            conv = "conv.1" if f"{place}.conv.1.weight" in state else "conv"
            bias = old[f"{place}.{conv}.bias"] = torch.rand(len(state[key]))
            old[key], biases = state[key] + bias, biases + 1
    assert biases
    old = Layout(name, "cpubone", CPUBONE).theirs(old)
    given = dict(old)
    found = model.convert_state_dict(old)
    assert found.keys() == state.keys() and old.keys() == given.keys()
    convert = importlib.import_module("timm.models.cpubone").checkpoint_filter_fn
    theirs = convert(dict(old), helpers.peer_model(name))
    assert all(torch.equal(value, theirs[key]) for key, value in found.items())
    for key, value in found.items():
        torch.testing.assert_close(value, state[key])


@pytest.mark.parametrize("kind", ["MViTv2", "Next-ViT"])
def test_a_file_with_more_blocks_is_refused(kind: str) -> None:
    layout = LAYOUTS[kind]
    model = featnet.create_model(layout.name, **layout.options)
    old = layout.theirs(model.state_dict())
    first = min((key for key in old if re.search(r"^\w+\.\d+\.", key)), key=len)
    old[re.sub(r"\d+", "99", first, count=1)] = old[first]
    with pytest.raises(CheckpointError, match=r"\.99\."):
        featnet.create_model(layout.name, checkpoint_path=old, **layout.options)


def test_the_tower_of_transformers() -> None:
    """Its Florence-2 gives what the network here gives with the weights of its file."""
    helpers.peer("transformers")
    florence = pytest.importorskip("transformers.models.florence2.modeling_florence2")
    dims, heads = [32, 64, 96, 128], [2, 4, 6, 8]
    config = florence.Florence2VisionConfig(
        depths=[1, 1, 2, 1],
        embed_dim=dims,
        num_heads=heads,
        num_groups=heads,
        window_size=4,
        drop_path_rate=0.0,
    )
    theirs = florence.Florence2VisionBackbone(config).eval()
    helpers.fill_noise(theirs)
    state = {f"model.vision_tower.{k}": v for k, v in theirs.state_dict().items()}
    ours = featnet.create_model(
        "davit_base_fl",
        depths=(1, 1, 2, 1),
        embed_dims=dims,
        num_heads=heads,
        window_size=4,
        num_classes=0,
    ).eval()
    body = ours.convert_state_dict(state | {"model.language_model.weight": torch.zeros(2)})
    left = ours.load_state_dict(body, strict=False)
    assert not left.unexpected_keys and all(key.startswith("head.") for key in left.missing_keys)
    x = image_batch(96, 128)
    with torch.inference_mode():
        wanted = theirs(x)
        wanted = getattr(wanted, "last_hidden_state", wanted)
        (found,) = ours.forward_intermediates(x, (3,), intermediates_only=True)
    found = found if wanted.shape == found.shape else found.flatten(2).transpose(1, 2)
    assert helpers.error(found, wanted) < 1e-5
