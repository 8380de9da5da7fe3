"""Networks that were made before: the same values from the same seed, whatever is left out."""

from __future__ import annotations

import threading
from typing import Any

import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet import blueprint, initial, registry
from featnet.layers import trunc_normal_

NAMES = ("resnet18", "test_vit", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050")


def drawn(name: str, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return featnet.create_model(name, **helpers.small(name), **options).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_values(name: str) -> None:
    blueprint._kept.clear()
    first, again = drawn(name), drawn(name)
    assert same(first, again) and blueprint._kept
    parts = [drawn(name, features_only=True, out_indices=k) for k in ((0,), (0,), None)]
    assert same(parts[0], parts[1])
    for part in parts:
        assert part and all(torch.equal(value, first[key]) for key, value in part.items())
    torch.manual_seed(6)
    other = featnet.create_model(name, **helpers.small(name)).state_dict()
    assert not same(first, other)


def test_nobody_shares_tensors() -> None:
    one, two = (featnet.create_model("test_resnet", features_only=True) for _ in range(2))
    tensors = [{t.data_ptr() for t in (*n.parameters(), *n.buffers())} for n in (one, two)]
    assert not tensors[0] & tensors[1]
    one.eval()
    assert two.training and all(m.training for m in two.modules())
    one(torch.rand(1, 3, 32, 32))
    assert one._source is not two._source


def test_bounded_and_shared_by_threads() -> None:
    blueprint._kept.clear()

    def make(i: int) -> None:
        featnet.create_model("test_resnet", num_classes=1 + i % 40)

    threads = [threading.Thread(target=make, args=(i,)) for i in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(blueprint._kept) == blueprint.MOST
    assert all(kept.size <= blueprint.LARGEST for kept in blueprint._kept.values())


def test_what_a_key_tells_apart() -> None:
    key = blueprint.key_of
    assert key("a", {"x": 1}) != key("a", {"x": True}) != key("a", {"x": 1.0})
    assert key((1, 2)) != key([1, 2]) and key(nn.ReLU) != key(nn.GELU)
    assert key(object()) is None


def test_another_default_type_is_another_network() -> None:
    featnet.create_model("test_resnet")
    torch.set_default_dtype(torch.float64)
    try:
        assert next(featnet.create_model("test_resnet").parameters()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert next(featnet.create_model("test_resnet").parameters()).dtype == torch.float32


def test_who_watches_sees_every_operation() -> None:
    class Watch(torch.overrides.TorchFunctionMode):
        drawn = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.drawn += getattr(func, "__name__", "") in initial.RANDOM
            return func(*args, **(kwargs or {}))

    with Watch() as watch:
        featnet.create_model("test_resnet")
    assert watch.drawn > 10


class Odd(nn.Module):
    """Parameters that come to their values in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(3, 4)
        nn.init.zeros_(self.plain.weight)
        nn.init.normal_(self.plain.weight[2:], mean=7.0, std=0.1)
        with torch.no_grad():
            self.plain.bias[1:] = 3
        self.scaled = nn.Parameter(torch.empty(64, 64))
        trunc_normal_(self.scaled, std=0.5, cut=2)
        self.scaled.data.mul_(2)
        self.constant = nn.Parameter(torch.full((3,), 2.5))


class Draws(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("random", torch.rand(3))


class Reads(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.copy = nn.Parameter(self.scaled.detach().clone())
        self.tied = nn.Parameter(self.plain.weight.data)


def test_notes_of_parts_and_of_what_is_read() -> None:
    notes = initial.Notes(1)
    with notes:
        odd = Odd()
    plans = notes.of(odd)
    assert notes.complete and "constant" not in plans
    assert len(plans["plain.weight"]) == 2  # the constructor's own draw was replaced
    names = {name: name for name in plans}
    initial.fill(odd, plans, 1, names=names)
    assert not odd.plain.weight[:2].any() and (odd.plain.weight[2:] - 7).abs().max() < 1
    assert odd.plain.bias[1:].eq(3).all() and odd.plain.bias[0] != 3
    assert odd.scaled.abs().max() <= 2 and 0.8 < odd.scaled.std() < 0.95
    values = {k: v.clone() for k, v in odd.state_dict().items()}
    initial.fill(odd, {"scaled": plans["scaled"]}, 1, names=names)  # the order does not matter
    assert torch.equal(odd.scaled, values["scaled"])

    notes = initial.Notes(1)
    with notes:
        Draws()
    assert not notes.complete
    notes = initial.Notes(1)
    with notes:
        reads = Reads()
    plans = notes.of(reads)
    assert not notes.complete  # it could not be drawn again
    assert torch.equal(reads.copy, reads.scaled) and reads.scaled.abs().max() <= 2
    assert torch.equal(reads.tied, reads.plain.weight) and "plain.weight" not in plans


def test_the_table_answers_for_a_name_alone() -> None:
    for name in ("resnet50", "vit_tiny_patch16_224.augreg_in21k", "hrnet_w18_small"):
        found = featnet.feature_info(name, out_indices=(-1, 1))
        with torch.device("meta"):
            wanted = featnet.create_model(
                name, features_only=True, out_indices=(-1, 1)
            ).feature_info
        assert list(found) == list(wanted) and found.out_indices == wanted.out_indices
        assert found.sizes((224, 224)) == wanted.sizes((224, 224))
    with pytest.raises(featnet.errors.UnknownModelError):
        featnet.feature_info("resnet50.no_such_tag")
    with pytest.raises(featnet.errors.OutIndexError):
        featnet.feature_info("resnet50", out_indices=(7,))


def test_a_name_that_was_registered_again_is_asked() -> None:
    class Other(featnet.Backbone):
        first_conv, last_fc = "conv", "fc"

        def __init__(self) -> None:
            super().__init__()
            self.add_stage("conv", nn.Conv2d(3, 5, 2, 2), channels=5, reduction=2)
            self.add_head(5, num_classes=2, global_pool="avg")

        def forward_levels(self, x: torch.Tensor) -> Any:
            yield self.conv(x)

    family = featnet.Family(model=Other, variants={"test_resnet": {}}, weights={})
    try:
        featnet.register(family, override=True)
        assert featnet.feature_info("test_resnet").channels() == [5]
    finally:
        registry._registered.pop("test_resnet")
    assert len(featnet.feature_info("test_resnet")) == 5
