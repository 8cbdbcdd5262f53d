"""Texts of probes that broke, and what the model says now, in the record and on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diagnosing import make_model, make_tokenizer
from riprap import Behavior, Monitor
from riprap.monitor import _broken_answers
from riprap.record import Reader
from riprap.report import write_report
from riprap.types import BrokenProbe

TEXTS = [f"question {'<b>' * (i == 1)}{i}" for i in range(8)]


def watched(folder: Path, texts: bool = True, break_it: bool = True) -> tuple[Any, Behavior, Any]:
    """Watch a model whose every probe passes, and raise one token's logits in one step."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer).train()
    ids = torch.arange(6, 6 + 8 * 5).view(8, 5)
    with torch.no_grad():
        targets = model.eval()(ids).logits[:, -1].argmax(-1)
    model.train()
    behavior = Behavior.next_token("asking", input_ids=ids, targets=targets)
    if texts:
        behavior.texts, behavior.tokenizer = TEXTS, tokenizer  # as constructors with one set them
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = Monitor([behavior], run_dir=folder, probe_every=1)
    with monitor.watch(model, optimizer):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        if break_it:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))
        before = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before[0], strict=True))
    assert torch.equal(torch.get_rng_state(), before[1])
    assert model.training
    return model, behavior, tokenizer


def test_the_record_has_texts_and_the_first_words_of_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, behavior, tokenizer = watched(tmp_path)
    with Reader(tmp_path) as reader:
        broken = reader.broken_probes()["asking"]
        margins = list(reader.margins("asking").values())
        events = [event["kind"] for event in reader.events()]
    failing = [i for i, margin in enumerate(margins[-1]) if margin <= 0]
    assert [probe.index for probe in broken] == failing
    assert len(failing) > _broken_answers.MAX_PROBES
    assert [probe.text for probe in broken] == [TEXTS[i] for i in failing]
    said = [probe.now for probe in broken]
    assert said[4:] == [None] * len(said[4:])
    for probe in broken[:4]:
        prompt = torch.tensor([behavior.token_rows()[probe.index]])
        answer = model.eval().generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        assert text.startswith((probe.now or "").rstrip("…")[:20])
    assert events[-1] == "ended"
    page = write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What broke" in page
    assert f"{len(failing)} probes" in page
    assert "question 0" in page or "question 2" in page
    assert "<b>1" not in page


def test_without_texts_the_probes_have_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    watched(tmp_path, texts=False)
    with Reader(tmp_path) as reader:
        broken = reader.broken_probes()["asking"]
    assert broken[0] == BrokenProbe(broken[0].index)
    page = write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "no text recorded" in page


def test_nothing_is_told_of_probes_that_pass(tmp_path: Path) -> None:
    watched(tmp_path, break_it=False)
    with Reader(tmp_path) as reader:
        assert reader.broken_probes() == {}
        assert "broken_answers" not in [event["kind"] for event in reader.events()]
    page = write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What broke" not in page


def test_a_failing_answer_ends_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no generation today")

    torch.manual_seed(0)
    monkeypatch.setattr("riprap.diagnosis.evidence.greedy_responses", fail)
    watched(tmp_path)
    with Reader(tmp_path) as reader:
        assert reader.broken_probes()["asking"][0].text is not None
        assert any("no generation today" in r.detail for r in reader.readings())
        assert reader.events()[-1]["kind"] == "ended"
