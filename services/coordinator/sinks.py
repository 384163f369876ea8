"""Where metrics go as the run makes them: JSON lines always, TensorBoard and Weights & Biases as the run file asks.

Three kinds of rows: an episode's, by its number; an optimizer step's and an evaluation's, by the global step.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from baton.config.logging import LoggingConfig
from baton.errors import ConfigError

EPISODES_FILE, STEPS_FILE, EVALUATIONS_FILE = "metrics.jsonl", "steps.jsonl", "evaluations.jsonl"
ROLLED_BACK_FILE = "rolled-back.jsonl"
"""The rows that the other files have lost to resumptions."""


JsonRows = dict[str, list[dict[str, Any]]]
"""Rows by the file that they are in."""
_NAMES = frozenset(
    ("episode", "policy_version", "weights_digest", "global_step", "pass", "step", "finished_episodes")
)  # fmt: skip
"""What rows have besides their metrics."""


class Sink(Protocol):
    """Takes rows of finite numbers."""

    def episode(self, episode_id: int, names: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """One finished episode; `names` say which weights sampled it."""
        ...

    def step(self, global_step: int, names: Mapping[str, int], metrics: Mapping[str, float]) -> None:
        """One optimizer step; `names` say of which episode, pass and step in it."""
        ...

    def evaluation(self, global_step: int, finished_episodes: int, metrics: Mapping[str, float]) -> None:
        """One evaluation of the weights after so many steps and episodes."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


def open_sinks(config: LoggingConfig, folder: Path, run_id: str, rows: JsonRows | None = None) -> list[Sink]:
    """What the run file asks for beside the JSON lines; a resumed run has `rows` already. Raises ConfigError if it cannot be
    opened."""
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", rows))
    if config.wandb_project is not None:
        sinks.append(WeightsAndBiases(config.wandb_project, run_id, folder))
    return sinks


class JsonLines:
    """One object a line: `metrics.jsonl` of episodes, `steps.jsonl` of optimizer steps, `evaluations.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def roll_back(self, episode: int, global_step: int) -> JsonRows:
        """Moves the rows of what came after `global_step`, before `episode`, to ROLLED_BACK_FILE; a row that was not written
        whole goes. Returns those that stay."""
        limits = {EPISODES_FILE: ("episode", episode - 1), STEPS_FILE: ("global_step", global_step),
                  EVALUATIONS_FILE: ("finished_episodes", episode)}  # fmt: skip
        kept: JsonRows = {}
        for name, (key, last) in limits.items():
            rows = _whole_rows(self._folder / name)
            kept[name] = [row for row in rows if row[key] <= last]
            for row in rows:
                if row[key] > last:
                    self._append(ROLLED_BACK_FILE, {"file": name, "resumed_from": global_step, **row})
            if (self._folder / name).exists():
                _write_rows(self._folder / name, kept[name])
        return kept

    def episode(self, episode_id: int, names: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._append(EPISODES_FILE, {"episode": episode_id, **names, **metrics})

    def step(self, global_step: int, names: Mapping[str, int], metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._append(STEPS_FILE, {"global_step": global_step, **names, **metrics})

    def evaluation(self, global_step: int, finished_episodes: int, metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._append(EVALUATIONS_FILE, {"global_step": global_step, "finished_episodes": finished_episodes, **metrics})

    def close(self) -> None:
        """Nothing is kept open."""

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def _whole_rows(file: Path) -> list[dict[str, Any]]:
    """The file's rows, without a last one that is cut off."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:  # its writer was killed
            break
    return rows


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(file)


class TensorBoard:
    """An event file: tags `episode/NAME` by episode, `step/NAME` and `eval/NAME` by global step."""

    def __init__(self, folder: Path, rows: JsonRows | None = None) -> None:
        """A resumed run's events are written anew from its rows: TensorBoard would show what was rolled back beside them."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if rows is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._events = EventFileWriter(str(folder))
        kinds = {EPISODES_FILE: ("episode", "episode"), STEPS_FILE: ("step", "global_step"),
                 EVALUATIONS_FILE: ("eval", "global_step")}  # fmt: skip
        for name, some in (rows or {}).items():
            kind, at = kinds[name]
            for row in some:
                self._write(kind, row[at], {key: row[key] for key in row if key not in _NAMES})

    def episode(self, episode_id: int, names: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._write("episode", episode_id, metrics)

    def step(self, global_step: int, names: Mapping[str, int], metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._write("step", global_step, metrics)

    def evaluation(self, global_step: int, finished_episodes: int, metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._write("eval", global_step, metrics)

    def close(self) -> None:
        """Flushes what is left."""
        self._events.close()

    def _write(self, kind: str, at: int, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in metrics.items()]
        self._events.add_event(Event(wall_time=time.time(), step=at, summary=Summary(value=values)))
        if kind == "episode":
            self._events.flush()


class WeightsAndBiases:
    """A run of the same name in a project: `episode/NAME` over `episode`, `step/NAME` and `eval/NAME` over
    `global_step`."""

    def __init__(self, project: str, run_id: str, folder: Path) -> None:
        import wandb

        try:
            self._run = wandb.init(project=project, name=run_id, dir=str(folder))
        except Exception as error:  # its own errors, and those of the network
            raise ConfigError(
                f"logging.wandb_project: got {project!r}; wandb says: {error}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._run.define_metric("episode/*", step_metric="episode")
        for kind in ("step", "eval"):
            self._run.define_metric(f"{kind}/*", step_metric="global_step")

    def episode(self, episode_id: int, names: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log({"episode": episode_id} | {f"episode/{name}": value for name, value in metrics.items()})

    def step(self, global_step: int, names: Mapping[str, int], metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log({"global_step": global_step} | {f"step/{name}": value for name, value in metrics.items()})

    def evaluation(self, global_step: int, finished_episodes: int, metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log({"global_step": global_step} | {f"eval/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
