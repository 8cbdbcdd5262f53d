"""A gate on two models: probes that the base passes, scored in the tuned model."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from launching import config
from riprap.commands.gate import Status, check_models, parse_requirements
from riprap.errors import ConfigError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny base model, and a copy whose weights differ by a millionth."""
    home = tmp_path_factory.mktemp("gate")
    config(home)
    base = home / "model"
    near = home / "near"
    near.mkdir()
    for file in base.iterdir():
        (near / file.name).write_bytes(file.read_bytes())
    weights = load_file(near / "model.safetensors")
    changed = {name: weight * (1 + 1e-6) for name, weight in weights.items()}
    save_file(changed, near / "model.safetensors", metadata={"format": "pt"})
    return str(base), str(near)


def test_a_model_keeps_what_it_is_compared_with(models: tuple[str, str]) -> None:
    base, near = models
    same = check_models(base, near, n_probes=16, quiet=True)
    measured = [check for check in same.checks if check.status is not Status.SKIPPED]
    assert measured and same.exit_code == 0
    assert all(check.found.startswith("1.00") for check in measured)
    skipped = [check for check in same.checks if check.status is Status.SKIPPED]
    assert all(check.note for check in skipped)


def test_what_the_base_does_not_have_is_unknown_if_it_is_required(
    models: tuple[str, str],
) -> None:
    base, near = models
    same = check_models(base, near, n_probes=16, quiet=True)
    missing = [check.requirement for check in same.checks if check.status is Status.SKIPPED]
    if not missing:
        pytest.skip("the tiny model passes probes of every set")
    result = check_models(
        base, near, parse_requirements(f"{missing[0]}>=0.5"), n_probes=16, quiet=True
    )
    assert result.exit_code == 3
    assert result.checks[0].note


def test_an_unknown_probe_set_is_refused(models: tuple[str, str]) -> None:
    base, near = models
    with pytest.raises(ConfigError, match="nonsense"):
        check_models(base, near, parse_requirements("nonsense>=0.5"), quiet=True)
