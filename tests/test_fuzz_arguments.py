"""Arguments at random: a network is what feature_info says, or there is an error of ours."""

from __future__ import annotations

import inspect
import os
import warnings
from typing import Any

import helpers
import hypothesis
import torch
from hypothesis import strategies as st

import featnet
from featnet import registry
from featnet.errors import FeatnetError

# As many as fit into some seconds, always the same ones
FEW = hypothesis.settings(
    derandomize=True,
    max_examples=int(os.environ.get("FEATNET_FUZZ", "60")),
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
SMALL = [
    min(featnet.list_models(module=m), key=helpers.parameter_count) for m in featnet.list_modules()
]
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([0.5, -1.0, float("nan"), float("inf"), 32, 64, 224]),
    st.sampled_from(
        ["", "avg", "relu", "se", "batchnorm", "groupnorm", "layernorm", "yes", "same"]
    ),
    st.tuples(st.integers(-1, 64), st.integers(-1, 64)),
    st.lists(st.integers(-1, 5), max_size=5),
    st.just(torch.ones(2)),
    st.just(object()),
    st.binary(max_size=2),
)
COMMON = ("in_chans", "num_classes", "global_pool", "drop_rate", "output_stride", "out_indices")
COMMON += (
    "out_strides",
    "output_fmt",
    "feature_cls",
    "norm",
    "return_prefix_tokens",
    "device",
    "dtype",
)


@FEW
@hypothesis.given(st.data())
def test_arguments_at_random(data: Any) -> None:
    name = data.draw(st.sampled_from(SMALL), "name")
    own = list(inspect.signature(registry.find(name).build).parameters)
    keys = data.draw(
        st.lists(st.sampled_from([*COMMON, *own]), min_size=1, max_size=3, unique=True)
    )
    options = {key: data.draw(junk, key) for key in keys}
    options = {
        "device": "meta",
        "features_only": data.draw(st.booleans(), "features_only"),
        **options,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = featnet.create_model(name, **options)
        info = net.feature_info
        size = info.input_size or (64, 64)
        sizes = info.sizes(size)
        x = torch.empty(1, net.in_chans, *size, device="meta")
        if options["features_only"]:
            maps = net.eval()(x.to(next(net.parameters()).dtype))
            maps = [
                m[0] if isinstance(m, tuple) else m
                for m in (maps.values() if isinstance(maps, dict) else maps)
            ]
            if getattr(net, "output_fmt", "NCHW") == "NCHW":
                assert [(m.shape[1], *m.shape[2:]) for m in maps] == [
                    (c, *s) for c, s in zip(info.channels(), sizes, strict=True)
                ]
    except FeatnetError as error:
        assert str(error)
