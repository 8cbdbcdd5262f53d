"""lm-eval's tasks on a live model: its own numbers are ours, and the model stays as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from runpy import run_path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from riprap.errors import ConfigError
from riprap.evals import encode_pair, evaluate, score_pairs
from small_evals import data_folder
from tiny import make_llama, make_tokenizer

ROOT = Path(__file__).parents[2]


class StandIn:
    """What `lm_eval.api.model.LM` gives its subclasses."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import `LiveModel`, on a stand-in of lm-eval where it is not installed."""
    try:
        import lm_eval.api.model  # noqa: F401
    except ImportError:
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lm_eval.api.model"].LM = StandIn  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "riprap.integrations.lm_eval", raising=False)
    from riprap.integrations.lm_eval import LiveModel

    model = LiveModel(make_llama(), make_tokenizer())
    yield model
    sys.modules.pop("riprap.integrations.lm_eval", None)


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_log_likelihoods_are_those_of_evals(live: Any) -> None:
    pairs = [("what is", " the car"), ("", "red"), ("how to ", "make a bomb")]
    found = live.loglikelihood([request(*pair) for pair in pairs])
    own = score_pairs(live.model, [encode_pair(live.tokenizer, *pair) for pair in pairs])
    assert found == [(one.log_prob, one.is_greedy) for one in own]


def test_rolling_counts_each_token_once(live: Any) -> None:
    text = "what is two plus three"
    (found,) = live.loglikelihood_rolling([request(text)])
    start, ids = encode_pair(live.tokenizer, "", text)
    with torch.no_grad():
        logits = live.model.eval()(torch.tensor([start + ids])).logits[0].log_softmax(-1)
    expected = sum(float(logits[at, token]) for at, token in enumerate(ids))
    assert found == pytest.approx(expected, abs=1e-4)
    live.model.config.max_position_embeddings = 4  # now in windows
    (windows,) = live.loglikelihood_rolling([request(text)])
    with torch.no_grad():
        rest = live.model(torch.tensor([ids[1:]])).logits[0].log_softmax(-1)
        first = live.model(torch.tensor([start + ids[:3]])).logits[0].log_softmax(-1)
    expected = sum(float(first[at, token]) for at, token in enumerate(ids[:3]))
    expected += sum(float(rest[at, ids[at + 2]]) for at in (1, 2))
    assert windows == pytest.approx(expected, abs=1e-4)


def test_generation_stops_at_the_first_stop(live: Any) -> None:
    (whole,) = live.generate_until([request("how to", {"max_gen_toks": 8})])
    words = whole.split()
    assert len(words) >= 2
    (cut,) = live.generate_until([request("how to", {"max_gen_toks": 8, "until": [words[1]]})])
    assert cut == whole.partition(words[1])[0]
    assert live.generate_until([request("how to", {"max_gen_toks": 8, "until": [""]})]) == [whole]


def test_what_it_does_not_offer_is_refused(live: Any) -> None:
    with pytest.raises(ConfigError, match="asks for top_p"):
        live.generate_until([request("how to", {"top_p": 0.5})])
    live.model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="Linear has no `generate`"):
        live.generate_until([request("how to", {})])


def test_lm_eval_itself_finds_our_numbers(live: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval.evaluator", reason="lm-eval is not installed")
    data = data_folder(tmp_path / "data")
    # By path: an installed package has the name of the folder.
    benchmark = run_path(str(ROOT / "benchmarks" / "eval_lm_eval.py"))
    theirs = benchmark["scores_by_lm_eval"](live, data / "arc_challenge_test.jsonl")
    ours = evaluate(live.model, live.tokenizer, ["arc_challenge"], data=data)["arc_challenge"]
    assert theirs == (ours.scores["accuracy"].value, ours.scores["accuracy_norm"].value)
