"""Keys of a monitor: behaviors, alert policy, guard, and where the record goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from riprap._config import StrictModel
from riprap.errors import ConfigError, RecordError
from riprap.monitor import DEFAULT_BUDGET
from riprap.record import expand_time


class BehaviorConfig(StrictModel):
    """Behavior to monitor: a probe set, or prompts with response prefixes.

    Attributes:
        probe_set: name of a shipped probe set, or a `.jsonl` file with probes.
        prompts: text file with one prompt per line; the behavior is how the response starts.
        prefixes: texts with which responses that show the behavior start.
        avoid: the response must not start with a prefix; only with `prompts`.
        n_probes: number of probes: evenly spaced over the probe set, the first lines of `prompts`.
        keep_passing: use only the probes that the model passes before training.
        system, chat_template_kwargs: system prompt of the probes, and arguments of the chat
            template, such as `enable_thinking: false`.
    """

    renamed: ClassVar = {"pack": "probe_set", "openers": "prefixes", "n": "n_probes"}

    probe_set: str | None = None
    name: str | None = None
    prompts: Path | None = None
    prefixes: tuple[str, ...] | None = None
    avoid: bool = False
    n_probes: int | None = Field(default=None, ge=1)
    floor: float = Field(default=0.90, gt=0, le=1)
    keep_passing: bool = False
    system: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class GuardConfig(StrictModel):
    """Guard that protects behaviors: its name in `riprap.guards`, and its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


class SelectorConfig(StrictModel):
    """Selector of the rows of each batch; see `riprap.selection.Selector`.

    Attributes:
        behaviors: names of the behaviors that `least_harm` and `adaptive` protect; None: all.
    """

    strategy: str = "moderate"
    ratio: float = Field(default=0.2, gt=0, le=1)
    behaviors: tuple[str, ...] | None = None
    probe_every: int = Field(default=10, ge=1)
    seed: int = 0


class MonitorConfig(StrictModel):
    """Monitor of a fine-tuning run, and its guard.

    Attributes:
        guard: intervention that protects behaviors; None: training is only watched.
        stop_on: level of an alert at which training stops; None: it does not.
        policy: name of a shipped alert policy, or a YAML file.
        probe_every: longest interval between two probe evaluations, in steps.
        budget: time that the monitor may take, as a share of the time of training; `null`: no
            limit. See `Monitor`.
        feature_layer: module whose output is used as features; None: the middle block.
        texts: record the prompts of the probes and the first words of the model's answers.
        run_dir: folder of the record and the report; `{time}` becomes the present time.
    """

    renamed: ClassVar[dict[str, str]] = {
        "protocol": "policy",
        "every": "probe_every",
        "layer": "feature_layer",
        "run": "run_dir",
    }

    title: str = ""
    guard: GuardConfig | None = None
    behaviors: tuple[BehaviorConfig, ...] = Field(min_length=1)
    policy: str = "default"
    probe_every: int = Field(default=20, ge=1)
    budget: float | None = Field(default=DEFAULT_BUDGET, gt=0, le=1)
    feature_layer: str | None = None
    stop_on: Literal["watch", "warning", "critical"] | None = None
    texts: bool = True
    run_dir: Path

    def expanded_run_dir(self, where: str, resume: bool = False) -> Path:
        """Return `run_dir` with the present time and the home folder; `resume` refuses `{time}`.

        Args:
            where: name of the configuration, for errors.
        """
        try:
            return expand_time(self.run_dir.expanduser(), resume)
        except RuntimeError as error:
            raise ConfigError(
                f"{where}: run_dir {str(self.run_dir)!r} has no home folder: {error}"
            ) from error
        except RecordError as error:
            raise ConfigError(f"{where}: {error}") from error
