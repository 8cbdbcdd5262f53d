"""Monitor on two ranks: training untouched, the readings of one rank, one writer, no deadlock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed.ranks import on_ranks, train
from riprap.record import Reader

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def ranks(request: Any, tmp_path_factory: Any) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, on_ranks(request.param, folder)


def values(out: dict[str, Any]) -> dict[tuple[Any, ...], float]:
    return {
        (step, b, signal, layer): value
        for step, b, signal, value, _, layer in out["readings"]
        if value == value
    }


def test_weights_and_generators_are_those_of_training_alone(ranks: Any) -> None:
    for out in ranks[1]:
        plain, watched = out["plain"], out["watched"]
        assert torch.equal(plain["random"], watched["random"])
        assert plain["others"] == watched["others"]
        for part in ("gradients", "momentum"):
            assert plain[part]
            assert len(plain[part]) == len(watched[part])
            assert all(map(torch.equal, plain[part], watched[part]))
        for part in ("weights", "weights after end"):
            assert len(plain["weights"]) == len(watched[part])
            assert all(map(torch.equal, plain["weights"], watched[part]))


def test_readings_are_those_of_one_rank(ranks: Any) -> None:
    alone = values(train("plain", None, watched=True))
    for out in ranks[1]:
        found = values(out["watched"])
        assert {key[2] for key in found} >= {
            "interference",
            "interference_layer",
            "margin",
            "norm_update",
            "cosine_margin",
        }
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            # What is extrapolated from readings makes their rounding larger.
            rtol = 1e-4 if key[2].startswith("forecast") else 1e-5
            np.testing.assert_allclose(found[key], value, rtol=rtol, atol=1e-5, err_msg=str(key))


def test_no_reading_failed(ranks: Any) -> None:
    for out in ranks[1]:
        assert "ERROR" not in {row[4] for row in out["watched"]["readings"]}


def test_every_rank_decides_alike(ranks: Any) -> None:
    first, second = (out["watched"] for out in ranks[1])
    assert first["alerts"] == second["alerts"] != []
    assert values(first).keys() == values(second).keys()


def test_rank_zero_alone_writes(ranks: Any) -> None:
    folder, outs = ranks
    assert [out["watched"]["wrote"] for out in outs] == [True, False]
    with Reader(folder / "run") as reader:
        kept = [r for r in reader.readings() if r.value is not None]
    assert len(kept) == len(values(outs[0]["watched"]))


def test_the_answers_to_probes_are_those_of_one_rank(ranks: Any, tmp_path: Path) -> None:
    train("plain", tmp_path, watched=True)
    with Reader(ranks[0] / "run") as found, Reader(tmp_path) as alone:
        assert found.answers() == alone.answers()
        said = found.answers()["words"]
        assert {0, 10} <= said.keys() and all(map(len, said.values()))
        assert found.behaviors()[0]["texts"] == alone.behaviors()[0]["texts"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_probes_that_fail_on_one_rank_stop_nobody(kind: str, tmp_path: Path) -> None:
    outs = on_ranks(kind, tmp_path, broken_rank=1)
    for out in outs:
        assert all(map(torch.equal, out["plain"]["weights"], out["watched"]["weights"]))

    def states(out: dict[str, Any], behavior: str) -> set[str]:
        rows = out["watched"]["readings"]
        return {row[4] for row in rows if row[1] == behavior and row[2] == "margin" and row[0] > 0}

    assert states(outs[1], "custom") == {"ERROR"}
    # Sharded ranks give a behavior up together; replicas go on without each other.
    assert states(outs[0], "custom") == ({"ERROR"} if kind == "fsdp" else {"MEASURED"})
    assert states(outs[0], "words") == states(outs[1], "words") == {"MEASURED"}


def test_a_change_on_one_rank_is_answered_by_all(tmp_path: Path) -> None:
    """Ranks of a sharded model pass together: all stop, and none evaluates alone."""
    first, second = on_ranks("change on one rank", tmp_path)
    assert first["stops"] == second["stops"]
    assert first["stops"][:4] == [False] * 4
    assert first["stops"][-1]
    assert "another rank" in first["reason"]
    assert "between step 4 and step 5" in second["reason"]
    assert first["evaluated"] == second["evaluated"] == 8  # step 9 is not
