"""What layers keep of what they derive, and what that depends on."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from torch import nn

from avila_diffusion.kernels import native
from avila_diffusion.models.layers import MUCH, Conv2d, Linear, keep_derived, keeper_of, release
from avila_diffusion.models.weights import Keeper, LowRank


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(*(Linear(64, 64) for _ in range(4)))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.half().requires_grad_(False)


X = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
ONE = 4 * 64 * 64
"""Bytes of one layer's weight in float32, packed or not."""


@pytest.mark.parametrize(("limit", "held"), [(None, 4), (0, 0), (ONE - 1, 0), (ONE, 1), (3 * ONE + 5, 3)])
def test_no_more_is_kept_than_the_limit_and_results_do_not_depend_on_it(limit: int | None, held: int) -> None:
    made, expected = network(), network()(X)
    keep_derived(made, limit)
    for _ in range(2):
        assert torch.equal(made(X), expected)
    assert keeper_of(made).held == held * ONE


def test_a_lower_limit_drops_what_is_beyond_it() -> None:
    made = network()
    expected = made(X)
    made(X)
    keep_derived(made, None)
    made(X)
    assert keeper_of(made).held == 4 * ONE
    keep_derived(made, 2 * ONE)
    assert keeper_of(made).held == 2 * ONE
    release(made)
    assert keeper_of(made).held == 0
    assert torch.equal(made(X), expected)


def test_what_a_change_makes_useless_is_counted_no_more() -> None:
    made = network()
    keep_derived(made, None)
    made(X)
    layer = made[1]
    assert isinstance(layer, Linear)
    layer.change("weight", [LowRank(torch.ones(64, 1), torch.ones(1, 64), 0.1)])
    assert keeper_of(made).held == 3 * ONE
    made(X)
    assert keeper_of(made).held == 4 * ONE
    with torch.no_grad():
        made.get_parameter("2.weight").mul_(2.0)  # a write, which torch counts
    made(X)
    assert keeper_of(made).held == 4 * ONE


def test_of_two_forms_of_a_weight_the_last_is_kept() -> None:
    if not native.serves(X):
        pytest.skip("convolutions have one form")
    layer = Conv2d(48, 32, 3, padding=1).requires_grad_(False)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    keep_derived(layer, None)
    small, large = (torch.randn(1, 48, side, side) for side in (8, 32))
    expected = layer(small), layer(large)
    assert keeper_of(layer).held == 4 * 36 * 48 * 32
    assert torch.equal(layer(small), expected[0])
    assert keeper_of(layer).held == 4 * 16 * 48 * 32
    assert torch.equal(layer(large), expected[1])


def test_a_weight_much_larger_than_its_map_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.serves(X):
        pytest.skip("nothing is packed")
    assert MUCH > 4 * 16 * 1280 * 1280, "two maps of 1280 channels are usual"
    monkeypatch.setattr("avila_diffusion.models.layers.MUCH", 4 * 16 * 32 * 32 - 1)
    layer = Conv2d(32, 32, 3, padding=1).requires_grad_(False)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    keep_derived(layer, None)
    layer(torch.randn(2, 32, 8, 8))  # 32 tiles
    assert keeper_of(layer).held == 0
    layer(torch.randn(2, 32, 8, 9))
    assert keeper_of(layer).held == 4 * 16 * 32 * 32


def test_copies_keep_for_themselves() -> None:
    made = network()
    keep_derived(made, 2 * ONE)
    expected = made(X)
    copied = copy.deepcopy(made)
    written = io.BytesIO()
    torch.save(made, written)
    written.seek(0)
    read = torch.load(written, weights_only=False)
    for other in (copied, read):
        assert keeper_of(other) is not keeper_of(made) and keeper_of(other).held == 0
        assert torch.equal(other(X), expected) and keeper_of(other).held == 2 * ONE == keeper_of(made).held


def test_weights_made_in_inference_mode_serve() -> None:
    with torch.inference_mode():
        made = network()
        expected = made(X)
    assert torch.equal(made(X), expected)


def test_what_was_kept_in_inference_mode_serves_where_gradients_are_wanted() -> None:
    made = network()
    with torch.inference_mode():
        made(X)
    x = X.clone().requires_grad_()
    made(x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_many_threads_never_keep_more_than_the_limit() -> None:
    keeper, over = Keeper(1000), []

    def work() -> None:
        for size in range(1, 400):
            if keeper.admit(size):
                if keeper.held > 1000:
                    over.append(keeper.held)
                keeper.take_back(size)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not over and keeper.held == 0
