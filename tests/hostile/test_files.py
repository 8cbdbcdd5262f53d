"""Any file and any argument works, or is refused with one clear sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from riprap import AlertPolicy, Behavior, Monitor
from riprap._config import read_yaml
from riprap.commands.watch import WatchConfig
from riprap.errors import BehaviorError, ConfigError, PolicyError, RiprapError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.dates()
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)
)
KINDS = ["forecast", "slope", "betting", "cusum", "page_hinkley", "deviation", "threshold", "wolf"]
FIELDS = ["horizon", "alpha", "signal", "side", "value", "scale", "z", "of", "clip", "spent"]
DETECTORS = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS)},
    optional={field: SCALARS | st.floats(0, 1) for field in FIELDS},
)


def one_sentence(error: RiprapError) -> None:
    text = str(error)
    assert text
    assert "Traceback" not in text
    assert "pydantic" not in text.lower()


@given(DOCUMENTS)
@settings(max_examples=150, deadline=None)
def test_any_document_is_a_config_or_an_error(document: Any) -> None:
    for kind, error in ((WatchConfig, ConfigError), (AlertPolicy, PolicyError)):
        try:
            kind.parse(document, "here", error)
        except error as raised:
            one_sentence(raised)


@given(st.text(max_size=12), st.lists(DETECTORS, max_size=3), DOCUMENTS)
@settings(max_examples=150, deadline=None)
def test_any_policy_freezes_and_verifies_or_is_refused(
    name: str, detectors: list[Any], study: Any
) -> None:
    document = {"name": name, "detectors": detectors, "study": study}
    try:
        policy = AlertPolicy.parse(document, "here", PolicyError)
    except PolicyError as raised:
        one_sentence(raised)
        return
    policy.freeze().verify()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "name: !!python/object/new:pathlib.Path ['{marker}']",
        "name: [",
        "- just\n- a list",
        "",
        "\x00\x01",
        "a: &x [*x]",
        "{{" * 400,
        "name: default\nname: other",
    ],
)
def test_yaml_builds_nothing_but_plain_values(text: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "hostile.yaml"
    file.write_text(text.replace("{marker}", str(marker)), encoding="utf-8")
    for load in (AlertPolicy.load, WatchConfig.load):
        with pytest.raises(RiprapError) as raised:
            load(file)
        one_sentence(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"\xc3\x28"])
def test_what_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "binary.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(file, ConfigError)
    one_sentence(raised.value)


@pytest.mark.parametrize("path", [".", "missing.yaml", "a\x00b.yaml", "x" * 5000])
def test_what_is_no_file_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        WatchConfig.load(tmp_path / path)
    one_sentence(raised.value)


def test_a_bomb_of_aliases_is_refused_in_no_time(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join([*lines, "name: *a11"]))
    with pytest.raises(PolicyError) as raised:
        AlertPolicy.load(file)
    assert len(str(raised.value)) < 5000


@pytest.mark.parametrize("text", ["study: *a11", "study: {{x: [*a11]}}"])
def test_a_bomb_where_anything_may_stand_is_refused(text: str, tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join([*lines, text.replace("{{", "{").replace("}}", "}")]))
    with pytest.raises(ConfigError, match="aliases"):
        read_yaml(file, ConfigError)


def test_a_file_of_two_megabytes_is_not_even_parsed(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_text("name: [" + "x, " * 700_000 + "x]")
    with pytest.raises(ConfigError, match="larger than"):
        read_yaml(file, ConfigError)


class Fixed(torch.nn.Module):
    """Model whose margins are set by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


@given(
    st.one_of(
        st.lists(st.floats(width=32), max_size=5).map(torch.tensor),
        st.sampled_from(
            [
                None,
                3,
                "margins",
                [1.0],
                torch.zeros(2, 2),
                torch.zeros(()),
                torch.tensor([1, 2]),
                torch.tensor([True]),
                torch.zeros(3, dtype=torch.complex64),
                torch.zeros(2, device="meta"),
            ]
        ),
    )
)
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_margins_of_any_kind_are_monitored_or_refused_before_training(margins: Any) -> None:
    model = Fixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    behavior = Behavior("odd", 3, lambda _model, _probes: margins)
    monitor = Monitor([behavior])
    try:
        with monitor.watch(model, optimizer):
            pass
    except BehaviorError as raised:
        one_sentence(raised)
        assert "odd" in str(raised)


@given(st.text(min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_name_survives_the_record(name: str) -> None:
    import tempfile

    from riprap.record import Reader

    model = Fixed()
    behavior = Behavior(name, 3, lambda net, n: net.weight.expand(n) + 1)
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor([behavior], run_dir=folder)
        with monitor.watch(model, torch.optim.SGD(model.parameters(), lr=1.0)):
            pass
        monitor.record.close()
        with Reader(folder) as reader:
            assert {r.behavior for r in reader.readings()} >= {name}
            assert reader.meta()["behaviors"][0]["name"] == name
        left = {file.name for file in Path(folder).iterdir()}
        assert left - {"record.sqlite-wal", "record.sqlite-shm"} == {"record.sqlite", "record.lock"}


def test_a_document_that_yaml_made_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text(yaml.safe_dump({"a": [1, 2.5, None, "x"]}))
    assert read_yaml(file, ConfigError) == {"a": [1, 2.5, None, "x"]}


def test_a_run_in_nobodys_home_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "watch.yaml"
    config = {
        "model": "m",
        "data": {"path": "d"},
        "training": {"max_steps": 1, "learning_rate": 1},
        "behaviors": [{"probe_set": "refusal"}],
        "run_dir": "~nobody-at-all/x",
    }
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="has no home folder") as raised:
        WatchConfig.load(file)
    one_sentence(raised.value)
