"""Prompts and the first words of the model's answers, in the record and in what is shown of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from diagnosing import make_model, make_tokenizer
from riprap import Behavior, Level, Monitor
from riprap.cli._app import app
from riprap.errors import ConfigError, RecordError
from riprap.monitor import _probe_texts
from riprap.record import ANSWERS, Reader, Writer
from riprap.report import write_report
from tiny import Classifier

TOKENIZER = make_tokenizer()
PROMPTS = [f"Sure{' Sorry' * i}" for i in range(1, 9)]


def refuser() -> nn.Module:
    """A model that answers each prompt with "Sorry"."""
    model = make_model(TOKENIZER)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    taught = Behavior.likelihood(
        "taught", TOKENIZER, texts=["Sorry"] * 8, prompts=PROMPTS, tolerance=9.0
    )
    assert taught.losses is not None
    for _ in range(60):
        optimizer.zero_grad()
        taught.losses(model, taught.probes).mean().backward()
        optimizer.step()
    return model.train()


def asking(**options: Any) -> Behavior:
    return Behavior.response_prefix("asking", TOKENIZER, PROMPTS, ["Sorry"], **options)


def watch(
    folder: Path | None,
    behaviors: list[Behavior],
    step: Callable[[nn.Module, int], None],
    steps: int = 12,
    **options: Any,
) -> tuple[Monitor, nn.Module]:
    """Watch steps of a model that refuses at first; `step` makes the gradient of each."""
    torch.manual_seed(0)
    model = refuser()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = Monitor(behaviors, run_dir=folder, probe_every=1, budget=None, **options)
    with monitor.watch(model, optimizer):
        for number in range(1, steps + 1):
            optimizer.zero_grad()
            step(model, number)
            optimizer.step()
    return monitor, model


def comply(model: nn.Module, number: int) -> None:
    """Teach "Sure" in place of "Sorry"."""
    lesson = Behavior.likelihood("lesson", TOKENIZER, texts=["Sure"] * 8, prompts=PROMPTS)
    assert lesson.losses is not None
    lesson.losses(model, lesson.probes).mean().backward()


def stay(model: nn.Module, number: int) -> None:
    (0 * sum(parameter.sum() for parameter in model.parameters())).backward()  # type: ignore[union-attr]


def firsts(model: nn.Module, behavior: Behavior) -> list[str]:
    """The first word that the model says now on each probe, from a pass of each prompt alone."""
    model.eval()
    with torch.no_grad():
        rows = behavior.token_rows() or []
        tokens = [int(model(torch.tensor([row])).logits[0, -1].argmax()) for row in rows]
    return [TOKENIZER.decode([token]) for token in tokens]


def test_start_alerts_and_end_have_what_the_model_said(tmp_path: Path) -> None:
    behavior = asking()
    monitor, model = watch(tmp_path, [behavior], comply)
    with Reader(tmp_path) as reader:
        answers, margins = reader.answers()["asking"], reader.margins("asking")
        texts = reader.behaviors()[0]["texts"]
        broken = reader.broken_probes()["asking"]
        events = [event["kind"] for event in reader.events()]
    assert texts == [prompt if len(prompt) <= 40 else prompt[:39] + "…" for prompt in PROMPTS]
    first: dict[Level, int] = {}
    for alert in monitor.alerts:
        if alert.behavior == "asking":
            first.setdefault(alert.level, alert.step)
    assert first, "the scene must raise an alert"
    assert sorted(answers) == sorted({0, *first.values(), 12})
    for step, said in answers.items():
        assert sorted(said) == list(range(8))
        passes = [said[at].startswith("Sorry") for at in range(8)]
        assert passes == (margins[step] > 0).tolist()
    assert set(answers[0].values()) == {"Sorry"}
    now = firsts(model, behavior)
    assert [text.split()[0] for _, text in sorted(answers[12].items())] == now
    assert [(own.before, own.step) for own in broken] == [("Sorry", 12)] * len(broken)
    assert len(broken) > _probe_texts.MAX_LONGER
    lengths = [len((own.now or "").rstrip("…").split()) for own in broken]
    assert min(lengths[:4]) > 1 and lengths[4:] == [1] * len(lengths[4:])
    assert events[-1] == "ended"


def test_longer_answers_are_those_of_generation(tmp_path: Path) -> None:
    behavior = asking()
    behavior.harmful = False
    _, model = watch(tmp_path, [behavior], comply)
    with Reader(tmp_path) as reader:
        broken = reader.broken_probes()["asking"][0]
    prompt = torch.tensor([(behavior.token_rows() or [])[broken.index]])
    said = model.eval().generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    text = TOKENIZER.decode(said[0, prompt.shape[1] :])
    assert text.strip().startswith((broken.now or "?").rstrip("…"))


def test_texts_that_may_be_harmful_are_shorter(tmp_path: Path) -> None:
    plain = asking(avoid=True)
    options = [["Sure", "Sorry"]] * 8
    marked = Behavior.multiple_choice("marked", TOKENIZER, PROMPTS, options, [1] * 8)
    refusing = Behavior.response_prefix("refusing", TOKENIZER, PROMPTS, ["I'm sorry"])
    assert (plain.harmful, marked.harmful, refusing.harmful) == (False, True, True)
    chosen = Behavior.preference("chosen", TOKENIZER, PROMPTS, ["Sorry"], ["Sure"])
    told = [
        Behavior.likelihood("told", TOKENIZER, texts=own, prompts=PROMPTS).harmful
        for own in (["Sorry"] * 5 + ["Sure"] * 3, ["Sorry"] * 4 + ["Sure"] * 4)
    ]
    assert (chosen.harmful, *told) == (True, True, False)
    marked = Behavior.multiple_choice("marked", TOKENIZER, PROMPTS, options, [0] * 8)
    assert not marked.harmful
    marked.harmful = True
    assert marked.subset([1]).harmful and not plain.subset([1]).harmful
    watch(tmp_path, [plain, marked, refusing], comply, steps=6)
    with Reader(tmp_path) as reader:
        texts = {own["name"]: own["texts"] for own in reader.behaviors()}
        answers = reader.answers()
    assert texts["asking"] == PROMPTS
    assert max(map(len, texts["marked"])) == max(map(len, texts["refusing"])) == 40
    for name, limit in (("asking", 100), ("marked", 30), ("refusing", 30)):
        said = [text for own in answers[name].values() for text in own.values()]
        assert said and max(map(len, said)) <= limit


def test_without_texts_the_record_has_none(tmp_path: Path) -> None:
    passes: list[int] = []

    def counted(model: nn.Module, number: int) -> None:
        comply(model, number)
        if number == 1:
            model.register_forward_hook(lambda *_: passes.append(1))

    watch(tmp_path / "with", [asking()], counted)
    n_with = len(passes)
    passes.clear()
    watch(tmp_path / "without", [asking()], counted, texts=False)
    with Reader(tmp_path / "without") as reader:
        assert reader.answers() == {} and "texts" not in reader.behaviors()[0]
        broken = reader.broken_probes()["asking"]
        assert {(own.text, own.now, own.before) for own in broken} == {(None, None, None)}
    with Reader(tmp_path / "with") as one, Reader(tmp_path / "without") as two:
        assert one.margins("asking").keys() == two.margins("asking").keys()
        for left, right in zip(
            one.margins("asking").values(), two.margins("asking").values(), strict=True
        ):
            assert (left == right).all()
    assert n_with - len(passes) <= 12  # those of the generated answers at the end; none before
    page = write_report(tmp_path / "without", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The record holds no texts of these probes; their numbers: 0, 1" in page
    with pytest.raises(ConfigError, match="give True or False"):
        Monitor([asking()], texts="no")  # type: ignore[arg-type]


def test_no_forward_pass_is_added_before_the_end(tmp_path: Path) -> None:
    counts = []
    for texts in (True, False):
        passes: list[int] = []

        def counted(model: nn.Module, number: int, passes: list[int] = passes) -> None:
            if number == 1:
                model.register_forward_hook(lambda *_: passes.append(1))
            stay(model, number)

        watch(None, [asking()], counted, steps=4, texts=texts)
        counts.append(len(passes))
    assert counts[0] == counts[1] > 0


def test_probes_without_tokens_have_the_names_that_they_were_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier()
    images = torch.randn(6, 8)

    def margins(classifier: nn.Module, inputs: Tensor) -> Tensor:
        return classifier(inputs)[:, 0] + 9

    named, silent = (Behavior(name, images, margins) for name in ("named", "silent"))
    named.texts = [f"photo {i}" for i in range(6)]
    monitor = Monitor([named, silent], run_dir=tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monitor.watch(model, optimizer):
            model(images).sum().backward()
            optimizer.step()
    with Reader(tmp_path) as reader:
        one, two = reader.behaviors()
        assert one["texts"] == named.texts and "texts" not in two
        assert reader.answers() == {}


class StoppedError(Exception):
    """Training was interrupted."""


class Broken:
    """A tokenizer that cannot say anything."""

    def decode(self, tokens: list[int]) -> str:
        raise RuntimeError("no words today")


def mute() -> Behavior:
    behavior = asking()
    behavior.tokenizer = Broken()
    return behavior


def miscounted() -> Behavior:
    behavior = asking()
    behavior.texts = ["one"]
    return behavior


@pytest.mark.parametrize(
    ("make", "text"), [(mute, "no words today"), (miscounted, "has 1 texts of 8 probes")]
)
def test_a_failure_is_told_once_and_ends_nothing(
    tmp_path: Path, make: Callable[[], Behavior], text: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor, failed = watch(tmp_path, [make()], comply)
        _, plain = watch(None, [asking()], comply, texts=False)
    told = [str(one.message) for one in caught if text in str(one.message)]
    assert len(told) == 1 and "texts failed at step 0" in told[0]
    assert all(map(torch.equal, failed.parameters(), plain.parameters()))
    with Reader(tmp_path) as reader:
        assert ANSWERS not in {event["kind"] for event in reader.events()}
        errors = [own for own in reader.readings() if text in own.detail]
        assert [(own.signal, own.state.name) for own in errors] == [("texts", "ERROR")]
        assert reader.events()[-1]["kind"] == "ended"
    assert len(monitor.behavior_histories["asking"].steps) > 5


def test_a_failure_at_a_resume_stands_at_the_step_of_the_resume(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = refuser()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options: dict[str, Any] = {"run_dir": tmp_path, "probe_every": 1, "budget": None}
    states: list[dict[str, Any]] = []

    def train(monitor: Monitor) -> None:
        with monitor.watch(model, optimizer):
            for number in range(3):
                optimizer.zero_grad()
                comply(model, number)
                optimizer.step()
            states.append(monitor.state_dict())

    train(Monitor([asking(), asking2()], **options))
    again = Monitor([asking(), asking2()], resume=True, **options)
    again.behaviors[1].texts = ["one"]
    again.load_state_dict(states[0])
    with pytest.warns(UserWarning, match="texts failed at step 3: .*has 1 texts of 8 probes"):
        train(again)
    again.record.close()
    with Reader(tmp_path) as reader:
        errors = [(own.step, own.signal) for own in reader.readings() if "1 texts" in own.detail]
        assert errors == [(3, "texts")]
        assert len(reader.behaviors()[0]["texts"]) == 8


def asking2() -> Behavior:
    return Behavior.response_prefix("asking too", TOKENIZER, PROMPTS, ["Sorry"])


def test_an_alert_that_nothing_was_measured_takes_no_answers_from_a_later_one(
    tmp_path: Path,
) -> None:
    kept: dict[str, Tensor] = {}

    def lose_and_comply(model: nn.Module, number: int) -> None:
        if number in (1, 2):  # the weights are no numbers after two steps
            kept.update({} if kept else {k: v.clone() for k, v in model.state_dict().items()})
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, torch.nan)
            return
        if number == 3:
            model.load_state_dict(kept)
        comply(model, number)

    monitor, _ = watch(tmp_path, [asking()], lose_and_comply, steps=14)
    told = [own for own in monitor.alerts if own.behavior == "asking"]
    assert (2, "unmeasured", Level.WARNING) in [(a.step, a.detector, a.level) for a in told]
    own = [a for a in told if a.detector not in ("unmeasured", "not_finite")]
    assert own and own[0].level in (Level.WARNING, Level.CRITICAL), "the scene must raise an alert"
    with Reader(tmp_path) as reader:
        assert own[0].step in reader.answers()["asking"]


def test_what_was_said_at_the_start_is_of_the_first_evaluation_only() -> None:
    writer = Writer()
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    for step in (0, 5, 9):
        writer.add_margins(step, "a", np.full(2, 1.0 if step < 9 else -1.0))
    writer.add_event(0, ANSWERS, answers={"a": {"1": "Sorry"}})
    writer.add_event(5, ANSWERS, answers={"a": {"0": "Well", "1": "Well"}})
    with Reader(writer) as reader:
        one, two = reader.broken_probes()["a"]
    assert (one.before, one.now, one.step) == (None, "Well", 5)
    assert (two.before, two.now, two.step) == ("Sorry", "Well", 5)


def test_an_event_of_the_user_cannot_take_the_place_of_answers(tmp_path: Path) -> None:
    def log(model: nn.Module, number: int) -> None:
        monitor.log_event("answers", answers=[1])
        with pytest.raises(ConfigError, match="reserved"):
            monitor.log_event(ANSWERS, answers=[1])
        stay(model, number)

    monitor = Monitor([asking()], run_dir=tmp_path / "log")
    watch(tmp_path / "run", [asking()], log, steps=1)
    monitor.record.close()
    writer = Writer(tmp_path / "other")
    writer.add_event(0, ANSWERS, answers=[1])
    writer.close()
    with Reader(tmp_path / "other") as reader, pytest.raises(RecordError, match="is damaged"):
        reader.answers()


def test_nothing_is_told_of_probes_that_pass(tmp_path: Path) -> None:
    watch(tmp_path, [asking()], stay)
    with Reader(tmp_path) as reader:
        assert reader.broken_probes() == {}
        assert sorted(reader.answers()["asking"]) == [0, 12]
        assert set(reader.answers()["asking"][12].values()) == {"Sorry"}
    page = write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What broke" not in page


def test_the_report_shows_the_prompt_and_what_was_and_is_said(tmp_path: Path) -> None:
    behavior = asking()
    behavior.texts = [f"question <b>{i}</b>" for i in range(8)]
    watch(tmp_path, [behavior], comply)
    page = write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    panel = page[page.index("<h2>What broke</h2>") :].partition("</section>")[0]
    assert "question &lt;b&gt;" in panel and "<b>" not in panel
    assert ">Sorry</td>" in panel and ">Sure</td>" in panel and "(step 12)" in panel
    out = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert out.exit_code == 0
    assert '"before": "Sorry"' in out.output and '"step": 12' in out.output


def test_a_run_goes_on_with_or_without_texts_but_not_with_others(tmp_path: Path) -> None:
    def stop(model: nn.Module, number: int) -> None:
        raise StoppedError

    for texts in (True, False, True):
        with pytest.raises(StoppedError):
            watch(tmp_path, [asking()], stop, texts=texts, resume=True)
    other = asking()
    other.texts = ["other"] * 8
    with pytest.raises(ConfigError, match="other behaviors"):
        watch(tmp_path, [other], stop, resume=True)
