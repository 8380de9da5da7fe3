"""Checkpoints in containers at random: a network that is in them, or one error and no change."""

from __future__ import annotations

from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

import featnet
from featnet.errors import CheckpointError

FEW = hypothesis.settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
NAME = "test_resnet"
STATE = featnet.create_model(NAME).state_dict()
OTHER = {k: v + 1 if v.is_floating_point() else v for k, v in STATE.items()}
KEYS = (
    "model",
    "state_dict",
    "net",
    "teacher",
    "student",
    "ema",
    "model_ema",
    "optimizer",
    "x",
    "",
)
PREFIXES = ("", "module.", "model.", "_orig_mod.", "backbone.", "encoder_q.", "a.b.", "0.")
INFIXES = ("", "_orig_mod.", "_checkpoint_wrapped_module.")
junk = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.just(torch.ones(3)),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def renamed(draw: Any) -> dict[str, torch.Tensor]:
    """One of two networks, under other names, now and then without some of its tensors."""
    state = draw(st.sampled_from([STATE, OTHER]))
    prefix, infix = draw(st.sampled_from(PREFIXES)), draw(st.sampled_from(INFIXES))
    names = {k: prefix + k.replace("layer1.0.", f"layer1.0.{infix}") for k in state}
    gone = draw(st.sampled_from([0, 0, 0, 1, 50]))
    return {names[k]: v for k, v in list(state.items())[gone:]}


containers = st.recursive(
    renamed(),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), inner | junk, min_size=1, max_size=3),
    max_leaves=3,
)


@FEW
@hypothesis.given(containers, st.booleans())
def test_containers_at_random(content: Any, features_only: bool) -> None:
    net = featnet.create_model(NAME, features_only=features_only)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    try:
        featnet.load_checkpoint(net, content)
    except CheckpointError as error:
        assert str(error)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        return
    after = net.state_dict()
    assert any(all(torch.equal(v, whole[k]) for k, v in after.items()) for whole in (STATE, OTHER))
