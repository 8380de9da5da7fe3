"""The rules for the meta device say what torch says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from featnet.tracing import shapes

MAP = torch.randn(2, 6, 8, 9)
TOKENS = torch.randn(2, 5, 8)
HEADS = torch.randn(2, 3, 5, 4)
T = torch.Tensor

CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    *[
        (func, (MAP,), {})
        for func in (F.gelu, F.relu, F.silu, torch.sigmoid, T.sigmoid, T.neg, F.hardswish)
    ],
    (F.normalize, (MAP,), {"dim": -1}),
    (F.relu, (MAP, True), {}),
    (F.silu, (MAP,), {"inplace": True}),
    (F.hardtanh, (MAP, 0.0, 6.0, True), {}),
    (F.batch_norm, (MAP, torch.zeros(6), torch.ones(6)), {}),
    (F.batch_norm, (MAP, None, None), {"training": True}),
    (F.layer_norm, (TOKENS, (8,)), {}),
    (F.layer_norm, (TOKENS, (5, 8), torch.ones(5, 8)), {}),
    (F.rms_norm, (TOKENS, (8,), torch.ones(8)), {}),
    (F.group_norm, (MAP, 3, torch.ones(6), torch.ones(6)), {}),
    (F.softmax, (MAP, 1), {}),
    (T.softmax, (MAP, 1), {"dtype": torch.float64}),
    (T.roll, (MAP, 1, 2), {}),
    *[
        (getattr(owner, name), (MAP, other), {})
        for owner in (torch, T)
        for name in ("add", "sub", "mul", "div")
        for other in (2, 0.5, MAP, MAP[:, :1], MAP[:1, :, :1], MAP[0, 0], MAP.double(), MAP.int())
    ],
    (T.add, (MAP[:, :1], MAP), {"alpha": 2}),
    (torch.add, (MAP[0], MAP), {}),
    (T.mul, (MAP.int(), 0.5), {}),
    (T.div, (MAP.int(), 2), {}),
    (F.linear, (TOKENS, torch.randn(7, 8)), {}),
    (F.linear, (TOKENS, torch.randn(7, 8), torch.randn(7)), {}),
    (F.linear, (), {"input": TOKENS, "weight": torch.randn(7, 8)}),
    (F.linear, (TOKENS, torch.randn(8)), {}),
    (torch.conv2d, (MAP, torch.randn(4, 6, 3, 3)), {}),
    (torch.conv2d, (MAP, torch.randn(4, 3, 3, 3), None, 2, (1, 0), 2, 2), {}),
    (torch.conv2d, (MAP, torch.randn(4, 6, 3, 2), torch.randn(4), (2, 1)), {"padding": 1}),
    (torch.conv2d, (MAP, torch.randn(4, 6, 3, 3)), {"padding": "same"}),
    (torch.conv2d, (MAP[0], torch.randn(4, 6, 3, 3), None, [1], [1]), {}),
    (F.scaled_dot_product_attention, (HEADS, HEADS, HEADS), {}),
    (F.scaled_dot_product_attention, (HEADS, HEADS[:, :, :2], HEADS[:, :, :2, :3]), {}),
    (F.scaled_dot_product_attention, (HEADS,) * 3, {"attn_mask": torch.zeros(5, 5)}),
    (F.scaled_dot_product_attention, (HEADS, HEADS[:, :1], HEADS[:, :1]), {}),
    (F.scaled_dot_product_attention, (HEADS, HEADS[:, :1], HEADS[:, :1]), {"enable_gqa": True}),
    (torch.cat, ([MAP, MAP[:, :2]], 1), {}),
    (torch.cat, ((MAP, MAP[..., :4]),), {"dim": -1}),
    (torch.cat, ([MAP, MAP.double()],), {}),
    (T.mean, (MAP, (2, 3)), {"keepdim": True}),
    (T.mean, (MAP, 1), {}),
    (T.mean, (MAP, [-1, -2], False), {}),
    (T.mean, (MAP,), {}),
    (T.mean, (MAP, 1), {"dtype": torch.float64}),
]

MISTAKES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (torch.conv2d, (MAP, torch.randn(4, 5, 3, 3)), {}),
    (torch.conv2d, (MAP, torch.randn(4, 6, 11, 3)), {}),
    (F.linear, (TOKENS, torch.randn(7, 9)), {}),
    (T.add, (MAP, MAP[..., :2]), {}),
    (torch.cat, ([MAP, MAP[:, :2]], 0), {}),
    (torch.cat, ([], 0), {}),
    (F.scaled_dot_product_attention, (HEADS, HEADS[..., :3], HEADS), {}),
    (F.scaled_dot_product_attention, (HEADS,) * 3, {"attn_mask": torch.zeros(4, 5)}),
    (T.mean, (MAP, 4), {}),
    (torch.cat, ([MAP, MAP], 4), {}),
    (F.layer_norm, (TOKENS, (9,)), {}),
    (F.layer_norm, (TOKENS, (8,), torch.ones(9)), {}),
    (F.group_norm, (MAP, 4), {}),
    (F.batch_norm, (MAP, torch.zeros(5), torch.ones(5)), {}),
    (F.silu, (), {"wrong": MAP}),
]


def on_meta(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(on_meta(item) for item in value)
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def label(value: Any) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("func", "args", "kwargs"), CALLS, ids=label)
def test_what_torch_says(func: Any, args: Any, kwargs: Any) -> None:
    kept = {key: on_meta(value) for key, value in kwargs.items()}
    copied = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    try:
        wanted = func(*copied, **kwargs)
    except RuntimeError:  # attention over heads that only enable_gqa pairs
        wanted = func(*on_meta(args), **kept)
    given = on_meta(args)
    with torch.no_grad():
        found = shapes.call(func, given, kept)
    assert found.is_meta and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert (found is given[0] if given else False) == (wanted is (copied[0] if copied else None))
    if found is given[0] if given else False:
        assert found._version == 1  # seen by those who count changes in place


@pytest.mark.parametrize(("func", "args", "kwargs"), MISTAKES, ids=label)
def test_mistakes_are_torchs_to_explain(func: Any, args: Any, kwargs: Any) -> None:
    given, kept = on_meta(args), {key: on_meta(value) for key, value in kwargs.items()}
    with pytest.raises(Exception) as theirs:
        func(*given, **kept)
    with pytest.raises(type(theirs.value)) as ours:
        shapes.call(func, given, kept)
    assert str(ours.value) == str(theirs.value)


def test_off_the_meta_device_torch_computes() -> None:
    assert torch.equal(shapes.call(F.relu, (MAP,), {}), F.relu(MAP))
    assert torch.equal(shapes.call(torch.cat, ([MAP, MAP],), {}), torch.cat([MAP, MAP]))
