"""Guards on two ranks do the same as on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed.guarded_training import EVERYWHERE, REPLICAS, on_ranks, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: Any) -> list[dict[str, Any]]:
    return on_ranks("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: Any) -> list[dict[str, Any]]:
    return on_ranks("fsdp", tmp_path_factory.mktemp("fsdp"))


def joined(outs: list[dict[str, Any]], name: str) -> list[torch.Tensor]:
    """The whole parameters from two ranks' shards, which are cut along the first dimension."""
    pairs = zip(*(out[name]["weights"] for out in outs), strict=True)
    return [torch.cat(pair) for pair in pairs]


def as_on_one(weights: list[torch.Tensor], actions: list[Any], name: str) -> None:
    alone = train("plain", (EVERYWHERE | REPLICAS)[name]())
    for found, expected in zip(weights, alone["weights"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)
    assert len(actions) == len(alone["actions"]) > 0
    for (guard, applied, before, after), expected in zip(actions, alone["actions"], strict=True):
        assert (guard, applied) == expected[:2]
        assert before == pytest.approx(expected[2], rel=1e-3, abs=1e-6)
        assert after == pytest.approx(expected[3], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", [*EVERYWHERE, *REPLICAS])
def test_replicas(name: str, ddp: list[dict[str, Any]]) -> None:
    for out in ddp:
        as_on_one(out[name]["weights"], out[name]["actions"], name)
    assert all(map(torch.equal, ddp[0][name]["weights"], ddp[1][name]["weights"]))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_shards(name: str, fsdp: list[dict[str, Any]]) -> None:
    for out in fsdp:
        assert "refused" not in out[name], out[name]
        as_on_one(joined(fsdp, name), out[name]["actions"], name)


@pytest.mark.parametrize("name", REPLICAS)
def test_what_shards_do_not_allow_is_refused(name: str, fsdp: list[dict[str, Any]]) -> None:
    assert all("sharded over ranks" in out[name]["refused"] for out in fsdp)


def test_what_all_ranks_see_is_said_by_the_first(
    ddp: list[dict[str, Any]], fsdp: list[dict[str, Any]]
) -> None:
    for outs in (ddp, fsdp):
        text = "the gradient of 'words' is not finite"
        assert [sum(text in own for own in out["sick"]["said"]) for out in outs] == [1, 0]
