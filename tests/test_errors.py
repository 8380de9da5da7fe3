"""Bad input gets an answer: the right type, the value given, what is allowed, the nearest right
one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import featnet
from featnet import create_model
from featnet.errors import (
    ArgumentError,
    CheckpointError,
    FeatnetError,
    InputSizeError,
    MissingFeatureError,
    OutIndexError,
    OutputStrideError,
    UnknownModelError,
)

LEVELS = ("act1", "layer1", "layer2", "layer3", "layer4")
KINDS = ("list", "dict", "hook")


def refusal(kind: type[Exception], call: Callable[[], Any], *parts: str) -> str:
    """The message of the exception that the call ends with; it holds all the parts."""
    with pytest.raises(kind) as caught, torch.device("meta"):
        call()
    assert isinstance(caught.value, FeatnetError)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (UnknownModelError, (RuntimeError, LookupError, ValueError)),
        (ArgumentError, (TypeError,)),
        (OutIndexError, (IndexError, ValueError)),
        (OutputStrideError, (ValueError, TypeError)),
        (InputSizeError, (ValueError, RuntimeError)),
        (MissingFeatureError, (LookupError, RuntimeError)),
        (CheckpointError, (RuntimeError, ValueError)),
    ],
)
def test_every_error_is_the_builtin_that_callers_catch(
    kind: type[Exception], builtin: tuple[type[Exception], ...]
) -> None:
    assert issubclass(kind, (FeatnetError,)) and all(issubclass(kind, b) for b in builtin)


# Names ------------------------------------------------------------------------------------------


def test_an_unknown_name_names_the_nearest() -> None:
    message = refusal(UnknownModelError, lambda: create_model("resnet51"), "'resnet50'")
    assert message.startswith("Unknown model 'resnet51'")


@pytest.mark.parametrize("name", ["resnet51", "resnet51.a1_in1k"])
@pytest.mark.parametrize(
    "ask",
    [create_model, featnet.feature_info, featnet.get_weights, featnet.model_entrypoint],
    ids=lambda f: f.__name__,
)
def test_whoever_takes_a_name_answers_alike(ask: Callable[[str], Any], name: str) -> None:
    message = refusal(UnknownModelError, lambda: ask(name), "resnet50")
    assert message.startswith("Unknown model 'resnet51'")


def test_an_unknown_tag_lists_the_tags() -> None:
    message = refusal(
        UnknownModelError,
        lambda: create_model("resnet18.a1_in1"),
        "'a1_in1'",
        "'resnet18'",
        "Did you mean 'a1_in1k'",
        "gluon_in1k",
    )
    assert message.startswith("Unknown model")


def test_an_unknown_tag_as_pretrained_cfg() -> None:
    call = lambda: create_model("resnet18", pretrained_cfg="nope")  # noqa: E731
    refusal(UnknownModelError, call, "'nope'", "a1_in1k")


@pytest.mark.parametrize("name", [None, 3, b"resnet18", ["resnet18"]])
def test_a_name_that_is_no_string(name: Any) -> None:
    refusal(ArgumentError, lambda: create_model(name), repr(name), type(name).__name__, "str")


@pytest.mark.parametrize("name", ["", " ", ".a1_in1k", "resnet 18", " resnet18 ", "resnet18\n"])
def test_a_name_that_is_no_word(name: str) -> None:
    message = refusal(UnknownModelError, lambda: create_model(name), repr(name), "'resnet50'")
    assert message.startswith("Unknown model")


def test_a_name_with_spaces_around_names_the_one_meant() -> None:
    refusal(UnknownModelError, lambda: create_model(" resnet18 "), "Did you mean 'resnet18'")


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("features_only", [False, True])
def test_an_unknown_argument_names_the_nearest(features_only: bool) -> None:
    refusal(
        ArgumentError,
        lambda: create_model("resnet18", features_only=features_only, num_clases=3),
        "'num_clases'",
        "Did you mean 'num_classes'",
        "drop_path_rate",
        "resnet18",
    )


def test_an_unknown_argument_of_an_extractor_names_the_nearest() -> None:
    call = lambda: create_model("resnet18", features_only=True, out_indexes=(1,))  # noqa: E731
    refusal(ArgumentError, call, "'out_indexes'", "Did you mean 'out_indices'")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("out_indices", (1, 2)),
        ("out_strides", (4, 8)),
        ("feature_cls", "dict"),
        ("out_map", ["a"]),
        ("output_fmt", "NHWC"),
        ("taps", ["layer1"]),
        ("return_dict", True),
        ("prune", False),
    ],
)
def test_features_only_arguments_without_features_only(name: str, value: Any) -> None:
    call = lambda: create_model("resnet18", **{name: value})  # noqa: E731
    refusal(ArgumentError, call, name, "features_only=True", "resnet18")


@pytest.mark.parametrize("value", ["yes", 1, 0.0])
def test_features_only_is_a_bool(value: Any) -> None:
    call = lambda: create_model("resnet18", features_only=value)  # noqa: E731
    refusal(ArgumentError, call, f"features_only={value!r}")


def test_scriptable_is_refused_with_what_there_is() -> None:
    call = lambda: create_model("resnet18", scriptable=True)  # noqa: E731
    refusal(ArgumentError, call, "scriptable=True", "torch.export")


@pytest.mark.parametrize("value", [0, -3, 3.0, "3", True])
def test_in_chans(value: Any) -> None:
    call = lambda: create_model("resnet18", in_chans=value)  # noqa: E731
    refusal(ArgumentError, call, f"in_chans={value!r}", "positive int")


@pytest.mark.parametrize("value", [-1, 2.0, "10", True])
def test_num_classes(value: Any) -> None:
    call = lambda: create_model("resnet18", num_classes=value)  # noqa: E731
    refusal(ArgumentError, call, f"num_classes={value!r}", "int from 0")


def test_no_pooling_but_classes() -> None:
    call = lambda: create_model("resnet18", global_pool="")  # noqa: E731
    refusal(ArgumentError, call, "global_pool=''", "1000 classes", "num_classes=0")


@pytest.mark.parametrize(
    ("argument", "value", "near"),
    [
        ("global_pool", "avgg", "'avg'"),
        ("act_layer", "rellu", "'relu'"),
        ("norm_layer", "batchnrm", "'batchnorm'"),
        ("attn_layer", "sea", "'se'"),
        ("aa_layer", "blurr", "'blur'"),
    ],
)
def test_an_unknown_layer_names_the_nearest(argument: str, value: str, near: str) -> None:
    call = lambda: create_model("resnet18", **{argument: value})  # noqa: E731
    refusal(ArgumentError, call, f"{argument}={value!r}", "Did you mean", near)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("act_layer", 3), ("norm_layer", 3), ("attn_layer", 3), ("aa_layer", 3), ("global_pool", 3)],
)
def test_a_layer_that_is_neither_a_name_nor_callable(argument: str, value: Any) -> None:
    call = lambda: create_model("resnet18", **{argument: value})  # noqa: E731
    refusal(ArgumentError, call, f"{argument}={value!r}")


@pytest.mark.parametrize("argument", ["drop_rate", "drop_path_rate", "drop_block_rate"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0, "0.1"])
def test_rates(argument: str, value: Any) -> None:
    call = lambda: create_model("resnet18", **{argument: value})  # noqa: E731
    refusal(ArgumentError, call, f"{argument}={value!r}")


def test_an_unknown_field_of_the_overlay_names_the_nearest() -> None:
    call = lambda: create_model("resnet18", pretrained_cfg_overlay={"fil": "x"})  # noqa: E731
    refusal(ArgumentError, call, "'fil'", "Did you mean 'file'", "hf_hub_id")


@pytest.mark.parametrize("argument", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_a_pretrained_cfg_of_the_wrong_type(argument: str) -> None:
    call = lambda: create_model("resnet18", **{argument: 3})  # noqa: E731
    refusal(ArgumentError, call, f"{argument}=3", "int")


# out_indices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature_cls", KINDS)
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ((1, 1), "level 1 is asked for twice"),
        ((4, -1), "level 4 is asked for twice"),
        ((True,), "True is a bool"),
        ((1, 2.0), "2.0 is a float"),
        (("1",), "'1' is a str"),
        ((None,), "None is a NoneType"),
        ((), "at least one level"),
        ((5,), "5 is out of range, -5 to 4"),
        ((-6,), "-6 is out of range, -5 to 4"),
        (0, "from 1 to 5"),
        (6, "from 1 to 5"),
        (-1, "from 1 to 5"),
        (True, "an int"),
        (2.0, "an int"),
        ("layer1", "an int"),
        ("12", "an int"),
        (object, "an int or a sequence"),
        ({1, 2}, "no order"),
    ],
    ids=repr,
)
def test_out_indices(wrong: Any, why: str, feature_cls: str) -> None:
    def build() -> None:
        create_model("resnet18", features_only=True, out_indices=wrong, feature_cls=feature_cls)

    message = refusal(OutIndexError, build, f"out_indices={wrong!r}", why, "5 levels")
    for index, level in enumerate(LEVELS):
        assert f"{index}: {level}" in message


@pytest.mark.parametrize("wrong", [(1, 1), (5,), (), 0, "2"], ids=repr)
def test_forward_intermediates_indices(wrong: Any) -> None:
    with torch.device("meta"):
        model = create_model("resnet18")
    x = torch.empty(1, 3, 64, 64, device="meta")
    call = lambda: model.forward_intermediates(x, wrong)  # noqa: E731
    refusal(OutIndexError, call, repr(wrong), *LEVELS)


@pytest.mark.parametrize("wrong", [(3,), "8", 8.0, ("8",), (True,), (), (8, 8), (64,)], ids=repr)
def test_out_strides(wrong: Any) -> None:
    call = lambda: create_model("resnet18", features_only=True, out_strides=wrong)  # noqa: E731
    refusal(OutIndexError, call, f"out_strides={wrong!r}", "5 levels", *LEVELS)


def test_out_strides_of_a_dilated_network_are_those_it_has() -> None:
    def build() -> None:
        create_model("resnet18", features_only=True, output_stride=8, out_strides=(32,))

    refusal(OutIndexError, build, "out_strides=(32,)", "[2, 4, 8]")


def test_out_indices_and_out_strides_together() -> None:
    def build() -> None:
        create_model("resnet18", features_only=True, out_indices=(1,), out_strides=(8,))

    refusal(ArgumentError, build, "out_indices", "out_strides", "not both")


# output_stride ----------------------------------------------------------------------------------


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    ("wrong", "say"),
    [
        (7, "nearest is 8"),
        (64, "nearest is 32"),
        (0, "nearest is 2"),
        (-8, "nearest is 2"),
        ("8", "str"),
        (8.0, "float"),
        (True, "bool"),
        ((8,), "tuple"),
    ],
    ids=repr,
)
def test_output_stride(wrong: Any, say: str, features_only: bool) -> None:
    def build() -> None:
        create_model("resnet18", output_stride=wrong, features_only=features_only)

    refusal(OutputStrideError, build, f"output_stride={wrong!r}", say, "[2, 4, 8, 16, 32]")


# Extractors -------------------------------------------------------------------------------------


def test_an_unknown_feature_cls_names_the_nearest() -> None:
    call = lambda: create_model("resnet18", features_only=True, feature_cls="lst")  # noqa: E731
    refusal(ArgumentError, call, "feature_cls='lst'", "Did you mean 'list'", *KINDS)


def test_a_feature_cls_that_is_nothing() -> None:
    call = lambda: create_model("resnet18", features_only=True, feature_cls=3)  # noqa: E731
    refusal(ArgumentError, call, "feature_cls=3", *KINDS)


@pytest.mark.parametrize("feature_cls", ["list", "dict"])
@pytest.mark.parametrize("argument", [{"taps": ["layer1"]}, {"return_dict": True}])
def test_what_only_hooks_take(feature_cls: str, argument: dict[str, Any]) -> None:
    def build() -> None:
        create_model("resnet18", features_only=True, feature_cls=feature_cls, **argument)

    refusal(ArgumentError, build, next(iter(argument)))


def test_taps_and_out_indices_both_say_what_comes_out() -> None:
    def build() -> None:
        create_model(
            "resnet18", features_only=True, feature_cls="hook", taps=["bn1"], out_indices=(1,)
        )

    refusal(ArgumentError, build, "taps", "out_indices")


@pytest.mark.parametrize("wrong", ["NCWH", "nchw", None.__class__])
def test_output_fmt(wrong: Any) -> None:
    call = lambda: create_model("resnet18", features_only=True, output_fmt=wrong)  # noqa: E731
    refusal(ArgumentError, call, f"output_fmt={wrong!r}", "'NCHW', 'NHWC', 'NLC'")


@pytest.mark.parametrize("wrong", [["a"], ["a", "a"], "ab", 3])
def test_out_map(wrong: Any) -> None:
    def build() -> None:
        create_model(
            "resnet18", features_only=True, feature_cls="dict", out_indices=2, out_map=wrong
        )

    refusal(ArgumentError, build, f"out_map={wrong!r}", "2 distinct names", "layer3", "layer4")


def test_out_map_of_a_module_that_is_no_level_names_the_nearest() -> None:
    def build() -> None:
        create_model("resnet18", features_only=True, feature_cls="dict", out_map={"layre4": "deep"})

    refusal(ArgumentError, build, "'layre4'", "Did you mean 'layer4'")


def test_an_extractor_of_what_declares_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    refusal(ArgumentError, lambda: featnet.FeatureListNet(model), "Sequential", "feature_info")
    refusal(ArgumentError, lambda: featnet.FeatureListNet("resnet18"), "str")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"num_chs": 4, "module": "0"}], ("reduction",)),
        ([{"num_chs": "4", "reduction": 1, "module": "0"}], ("channels '4'", "positive int")),
        ([{"num_chs": 4, "reduction": 0, "module": "0"}], ("reduction 0", "positive int")),
        ([3], ("3", "dict")),
    ],
)
def test_a_declaration_that_is_wrong(rows: Any, parts: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.feature_info = rows
    refusal(ArgumentError, lambda: featnet.FeatureListNet(model), "Level 0", *parts)


def test_a_declared_module_that_is_not_there_names_the_nearest() -> None:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 4, 3))
    model.feature_info = [dict(num_chs=4, reduction=1, module="cnov")]  # type: ignore[assignment]
    call = lambda: featnet.FeatureListNet(model)  # noqa: E731
    refusal(MissingFeatureError, call, "'cnov'", "Did you mean 'conv'")


def test_an_unknown_field_of_a_level_names_the_nearest() -> None:
    info = featnet.feature_info("resnet18")
    with pytest.raises(KeyError, match="num_chs"):
        info.get("num_ch")
    with pytest.raises(KeyError, match="Did you mean 'reduction'"):
        info[0]["reductio"]


# Input ------------------------------------------------------------------------------------------


def networks() -> list[tuple[str, Callable[[], Any]]]:
    found: list[tuple[str, Callable[[], Any]]] = [("classifier", lambda: create_model("resnet18"))]
    for kind in KINDS:
        found.append(
            (kind, lambda k=kind: create_model("resnet18", features_only=True, feature_cls=k))
        )
    return found


NETWORKS = dict(networks())


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((3, 64, 64), ("3 dimensions", "(3, 64, 64)", "(N, 3, H, W)", "x[None]")),
        ((64, 64), ("2 dimensions", "(N, 3, H, W)")),
        ((1, 3, 4, 64, 64), ("5 dimensions", "(N, 3, H, W)")),
        ((1, 1, 64, 64), ("1 channels", "in_chans=3")),
        ((1, 64, 64, 3), ("64 channels", "in_chans=3")),
    ],
)
def test_an_input_of_the_wrong_shape(
    kind: str, shape: tuple[int, ...], parts: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        model = NETWORKS[kind]()
    refusal(InputSizeError, lambda: model(torch.empty(shape, device="meta")), *parts)


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_input_that_is_no_tensor(kind: str) -> None:
    with torch.device("meta"):
        model = NETWORKS[kind]()
    refusal(ArgumentError, lambda: model("image.png"), "str", "(N, C, H, W)")


@pytest.mark.parametrize(
    ("kind", "options"),
    [("classifier", {}), *((kind, {"features_only": True, "feature_cls": kind}) for kind in KINDS)],
)
def test_an_input_too_small_says_the_smallest_that_works(
    kind: str, options: dict[str, Any]
) -> None:
    with torch.device("meta"):
        model = create_model("resnetblur18", **options).eval()

    def run(size: int) -> Any:
        return model(torch.empty(1, 3, size, size, device="meta"))

    # The last blur reflects by one: its map, at reduction 16, must be larger than 1
    for size in (1, 16):
        said = "The smallest square that works is 17 x 17."
        refusal(InputSizeError, lambda size=size: run(size), f"{size} x {size}", said)
    run(17)


@pytest.mark.parametrize("options", [{}, {"features_only": True}])
def test_sizes_of_an_input_too_small(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        info = create_model("resnetblur18", **options).feature_info
    refusal(InputSizeError, lambda: info.sizes((2, 2)), "2 x 2", "smallest square that works")


def test_what_an_extractor_left_away_does_not_decide() -> None:
    with torch.device("meta"):
        net = create_model("legacy_seresnet18", features_only=True, out_indices=(0, 1)).eval()
        said = "The smallest square that works is 3 x 3."
        refusal(InputSizeError, lambda: net(torch.empty(1, 3, 1, 1)), "1 x 1", said)
    refusal(InputSizeError, lambda: net.feature_info.sizes((1, 1)), "1 x 1", said)


def test_an_empty_input_is_refused() -> None:
    with torch.device("meta"):
        model = create_model("resnet18", features_only=True).eval()
    refusal(InputSizeError, lambda: model(torch.empty(1, 3, 0, 64, device="meta")), "0 x 64")


def test_batch_norm_in_training_explains_itself() -> None:
    model = create_model("test_resnet").train()
    refusal(InputSizeError, lambda: model(torch.zeros(1, 3, 32, 32, device="cpu")), "batch norm")


def test_only_batch_norm_is_told_so_in_training() -> None:
    """Layers that are larger than their map speak of sizes "per channel", too."""
    said = "The smallest square that works is 32 x 32."
    for name in ("rdnet_tiny", "convnext_atto"):
        with torch.device("meta"):
            model = create_model(name).train()
        refusal(InputSizeError, lambda model=model: model(torch.empty(1, 3, 16, 16)), said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("convnext_atto", "depths=(1, 1), dims=(40, 80, 160, 320), kernel_sizes=(7, 7, 7, 7): one"),
        ("hgnetv2_b0", "depths=(1, 1), mid_chs=(16, 32, 64, 128), out_chs=(64, 256, 512, 1024): "),
        ("lcnetv2_base", "depths=(1, 1): one value for each stage, 4, are expected."),
        ("rdnet_tiny", "depths=(1, 1): one value for each stage, equally many, are expected."),
        ("ese_vovnet19b_dw", "out_chs=(256, 512, 768, 1024): one value for each stage, equally"),
    ],
)
def test_as_many_depths_as_stages(name: str, said: str) -> None:
    refusal(ArgumentError, lambda: create_model(name, depths=(1, 1)), said)


class OutOfMemory(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_meta:
            raise RuntimeError("out of memory")
        return x


def test_an_error_that_is_not_the_sizes_fault_stays_itself() -> None:
    model = create_model("resnet18").eval()
    model.layer1 = OutOfMemory()
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        model(torch.zeros(1, 3, 64, 64))
    assert not isinstance(caught.value, FeatnetError)


@pytest.mark.parametrize("options", [{}, {"features_only": True, "output_stride": 8}])
def test_an_input_beyond_a_table_of_positions(options: dict[str, Any]) -> None:
    """Attention that was built for an ``img_size`` takes what is not larger."""
    with torch.device("meta"):
        model = create_model("botnet26t_256", **options).eval()
        large = create_model("botnet26t_256", img_size=288, **options).eval()
    x = torch.empty(1, 3, 256, 288, device="meta")
    parts = "256 x 288", "up to 256 x 256", "img_size"
    refusal(InputSizeError, lambda: model(x), *parts)
    refusal(InputSizeError, lambda: model.feature_info.sizes((256, 288)), *parts)
    large(x)
    model(x[..., :97, :65])


# What was registered ----------------------------------------------------------------------------


def test_a_family_whose_table_does_not_fit_its_constructor() -> None:
    from featnet import Family, Weights

    def make(width: int = 1) -> nn.Module:
        return nn.Identity()

    call = lambda: Family(model=make, variants={"a": {"widht": 2}})  # noqa: E731
    refusal(ArgumentError, call, "Row 'a'", "'widht'", "Did you mean 'width'")
    stray = lambda: Family(model=make, variants={"a": {}}, weights={"b.x": Weights()})  # noqa: E731
    refusal(ArgumentError, stray, "'b.x'", "no variant")


def test_no_checkpoint_to_load_says_so() -> None:
    call = lambda: create_model("resnet18", pretrained=True, pretrained_cfg={"tag": "mine"})  # noqa: E731
    refusal(CheckpointError, call, "no pretrained weights", "resnet18.mine")


@pytest.mark.parametrize("kind", ["classifier", "list", "hook"])
@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.uint8, "input is uint8 and the network float32: use featnet.create_transform"),
        (torch.int64, "input is int64 and the network float32: use featnet.create_transform"),
        (torch.float64, r"input is float64 and the network float32: .*\.to\(dtype="),
        (torch.bfloat16, r"input is bfloat16 and the network float32: .*\.to\(dtype="),
    ],
)
def test_an_input_of_another_type(kind: str, dtype: torch.dtype, words: str) -> None:
    options = {} if kind == "classifier" else {"features_only": True, "feature_cls": kind}
    net = featnet.create_model("test_resnet", **options)
    with pytest.raises(ArgumentError, match=words):
        net(torch.zeros(2, 3, 64, 64, dtype=dtype))
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", torch.bfloat16):
            net(torch.zeros(2, 3, 64, 64, dtype=dtype))
