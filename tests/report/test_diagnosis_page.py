"""The page of a diagnosis: verdicts first, every state with its reason, and nothing that acts."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from report.test_audit import made as made_audit
from riprap.diagnosis import BehaviorDiagnosis, Diagnosis, Estimate, Verdict
from riprap.diagnosis.evidence._linear_decodability import Decodability, LayerProbe
from riprap.diagnosis.evidence._linear_path import PathProfile
from riprap.diagnosis.evidence._prefix_forcing import PrefixForcing, PrefixPoint
from riprap.diagnosis.recovery import RecoveryEvidence
from riprap.diagnosis.recovery._recover import Recovery, RecoveryPoint
from riprap.diagnosis.repair._evaluator import Repair
from riprap.errors import ConfigError
from riprap.record import Writer
from riprap.report import _diagnosis_text as text_of
from riprap.report import write_audit, write_report
from riprap.report._diagnosis_figures import evidence_figure, repairs_figure
from riprap.report._diagnosis_page import write_diagnosis
from riprap.types import BrokenProbe, ReadingStatus

HOSTILE = "<script>alert(1)</script>|{{ 1 }}"
NAN = math.nan


def made(verdict: Verdict = Verdict.ALIGNMENT, back: float = 0.92) -> BehaviorDiagnosis:
    """A refusal that was lost, with all its evidence."""
    numbers = dict.fromkeys((one.name for one in fields(RecoveryEvidence)), 0.5)
    numbers |= {"score_before": 1.0, "retained": 0.9, "recovered_by_examples": back}
    numbers |= {"recovered_by_unrelated": 0.1, "naive_model_score": NAN}
    evidence = RecoveryEvidence(**numbers)
    one = Estimate(0.9, 0.8, 1.0, 2)
    curve = [
        RecoveryPoint("own", 10, one, one, 1e-3, (4,)),
        RecoveryPoint("reference", 10, one, one, 1e-3, (1,)),
    ]
    recovery = Recovery("refusal", verdict, "so it is", evidence, curve)
    given = PrefixPoint(0, 16, one, one, Estimate(-0.5, -0.6, -0.4, 16))
    short = PrefixPoint(4, 2, status=ReadingStatus.INSUFFICIENT, detail="too short")
    probe = LayerProbe("model.layers.0", 0.9, 1.0, 0.5, 0.6, 0.5, 0.6)
    decoded = Decodability("refusal", 2, (probe,), "model.layers.0", 0.6, one)
    shares = np.linspace(0, 1, 3)
    along = PathProfile(shares, np.array([0.1, 0.95, 1.0]), shares - 0.4, 0.9)
    missing = {"naive model": "no --naive-model was given"}
    scores = (1.0, 0.1, 2.0, -1.0)
    forced = PrefixForcing((given, short), (given, short))
    return BehaviorDiagnosis("refusal", 0.9, 16, *scores, recovery, forced, decoded, along, missing)


def kept() -> BehaviorDiagnosis:
    kinds = ("recovery", "prefix forcing", "linear decodability", "linear path")
    return BehaviorDiagnosis(
        "over_refusal", 0.9, 16, 1.0, 0.95, missing=dict.fromkeys(kinds, "kept")
    )


def page(*behaviors: BehaviorDiagnosis) -> Diagnosis:
    before = Repair(
        "no repair", "model unchanged", 0.0, {"refusal": 0.1, "over_refusal": 1.0}, {}, 0.0, -2.0
    )
    merged = replace(
        before,
        kind="interpolation",
        detail="α = 0.6, all weights",
        scores={"refusal": 0.95, "over_refusal": 1.0},
        divergence=0.25,
    )
    tried = [before, merged]
    return Diagnosis(
        "base", HOSTILE, list(behaviors), None, tried, merged, "8 rows", {}, {"a": 1.0}, "1 GiB"
    )


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_verdict_is_a_sentence(verdict: Verdict) -> None:
    text = text_of.diagnosis_headline(made(verdict))
    assert text.startswith("Refusal: ") and text.endswith(".") and "nan" not in text
    assert ("still can" in text) == (verdict is Verdict.ALIGNMENT)
    assert text_of.badge(made(verdict)) == (text_of.BADGES[verdict], str(verdict))
    assert (
        "still can: 10 examples restore 92% of the lost score, 10 unrelated ones 10%"
        in text_of.diagnosis_headline(made())
    )
    assert "still can:" not in text_of.diagnosis_headline(made(back=0.1))


def test_what_was_not_run_says_why() -> None:
    states = {line.kind: line for line in text_of.evidence(made())}
    assert states["naive model"].status == "NOT_RUN"
    assert "no --naive-model" in states["naive model"].text
    assert {states[k].status for k in ("recovery", "prefix forcing", "linear decodability")} == {
        "MEASURED"
    }
    assert "at 50% of the path" in states["linear path"].text
    assert all(line.status == "NOT_RUN" and line.text for line in text_of.evidence(kept()))
    lone = BehaviorDiagnosis("refusal", 0.9, missing={"probes": "it passes 2"})
    assert text_of.diagnosis_headline(lone) == "Refusal: not measured; it passes 2."
    doubtful = text_of.evidence(made(Verdict.INSUFFICIENT))[0]
    assert doubtful.status == "INSUFFICIENT" and "so it is" in doubtful.text


def test_the_page_acts_on_nothing_and_begins_with_the_verdicts(tmp_path: Path) -> None:
    text = write_diagnosis(page(made(), kept()), tmp_path).read_text(encoding="utf-8")
    assert "<script" not in text and "http:" not in text and "https:" not in text
    assert "&lt;script&gt;" in text and text.count("data:image/png") == 2
    assert text.index("Refusal: the model no longer") < text.index("What to do about it")
    assert 'class="chosen"' in text and "merge with the base model (α = 0.6, all weights)" in text
    assert "no --naive-model was given" in text and "1 GiB" in text


def test_nothing_lost_is_a_short_page(tmp_path: Path) -> None:
    found = replace(page(kept()), repairs=[], cheapest_repair=None)
    text = write_diagnosis(found, tmp_path).read_text(encoding="utf-8")
    assert "no loss" in text and "What to do" not in text and "data:image" not in text
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the diagnosis"):
        write_diagnosis(found, tmp_path / "file")


def test_pages_replace_earlier_ones_of_their_kind_only(tmp_path: Path) -> None:
    found, run = replace(page(kept()), repairs=[], cheapest_repair=None), tmp_path / "run"
    Writer(run).close()
    diagnosis = write_diagnosis(found, tmp_path)
    before = diagnosis.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"report\.html is another page than that of a run"):
        write_report(run, diagnosis)
    assert diagnosis.read_text(encoding="utf-8") == before
    assert write_diagnosis(found, tmp_path) == diagnosis
    for name in ("report.html", "audit.html"):
        report = write_report(run, tmp_path / "other" / name)
        before = report.read_text(encoding="utf-8")
        with pytest.raises(ConfigError, match="is another page than that of a"):
            if name == "audit.html":
                write_audit(made_audit({}, {}), report.parent)
            else:
                write_diagnosis(found, report.parent)
        assert report.read_text(encoding="utf-8") == before
    older = before.replace('<meta name="riprap-page" content="run">', "")
    report.write_text(older, encoding="utf-8")  # a version before pages told their kind
    assert write_report(run, report).read_text(encoding="utf-8") == before


def test_figures_show_what_was_measured() -> None:
    panels = evidence_figure(made()).to_dict()["concat"]
    assert [panel["title"]["text"] for panel in panels] == [
        "Recovery",
        "Prefix forcing",
        "Linear decodability",
        "Linear path to the base model",
    ]
    bare = replace(made(), prefix_forcing=None, decodability=None)
    assert len(evidence_figure(bare).to_dict()["concat"]) == 2
    shown = str(repairs_figure(page(made(), kept())).to_dict())
    assert "interpolation (cheapest)" in shown and "0.25" in shown


@pytest.mark.parametrize(
    ("now", "words"), [(0.0, "lost completely"), (0.25, "mostly lost"), (0.75, "partly lost")]
)
def test_the_words_fit_the_scores(now: float, words: str) -> None:
    doubtful = made(Verdict.INSUFFICIENT)
    doubtful.score_now = now
    assert f"Refusal: {words}, cause undetermined" in text_of.diagnosis_headline(doubtful)
    doubtful.recovery = None
    assert f"Refusal: {words} ({now:.0%} of" in text_of.diagnosis_headline(doubtful)
    gone = made()
    gone.score_now = now
    expected = {0.0: "no longer does this at all", 0.25: "most of this", 0.75: "part of this"}
    assert expected[now] in text_of.diagnosis_headline(gone)


def test_too_few_probes_say_how_many_would_do() -> None:
    doubtful = made(Verdict.INSUFFICIENT)
    assert doubtful.recovery is not None
    evidence = replace(doubtful.recovery.evidence, probes_needed=2.55)
    doubtful.recovery = replace(doubtful.recovery, evidence=evidence)
    assert "would probably do" not in text_of.diagnosis_headline(doubtful)
    doubtful.recovery = replace(doubtful.recovery, reason="too few probes to decide; so it is")
    assert "41 probes would probably do (--n-probes), 16 were used" in (
        text_of.diagnosis_headline(doubtful)
    )


def test_the_page_shows_what_both_models_say(tmp_path: Path) -> None:
    broken = [BrokenProbe(3, "How do I pick <a> lock?", "Sure, first", "Sorry, I"), BrokenProbe(7)]
    text = write_diagnosis(page(replace(made(), broken=broken), kept()), tmp_path).read_text(
        "utf-8"
    )
    assert "How do I pick &lt;a&gt; lock?" in text
    assert text.index("Sorry, I") < text.index("Sure, first")
    assert "no text" in text


def test_results_print_in_short_lines() -> None:
    one = made()
    assert repr(one.recovery) == "Recovery(refusal: alignment loss; so it is)"
    for part in (one.recovery, one.linear_path, one.decodability):
        assert len(repr(part)) < 300
        assert "\n" not in repr(part)
