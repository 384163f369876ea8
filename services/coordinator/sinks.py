"""Where metrics go as the run makes them: JSON lines always, TensorBoard and Weights & Biases as the run file asks.

Three kinds of rows: an episode's, by its number; an optimizer step's and an evaluation's, by the global step.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from baton.config.logging import LoggingConfig
from baton.errors import ConfigError

EPISODES_FILE, STEPS_FILE, EVALUATIONS_FILE = "metrics.jsonl", "steps.jsonl", "evaluations.jsonl"


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


def open_sinks(config: LoggingConfig, folder: Path, run_id: str) -> list[Sink]:
    """What the run file asks for beside the JSON lines. Raises ConfigError if it cannot be opened."""
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard"))
    if config.wandb_project is not None:
        sinks.append(WeightsAndBiases(config.wandb_project, run_id, folder))
    return sinks


class JsonLines:
    """One object a line: `metrics.jsonl` of episodes, `steps.jsonl` of optimizer steps, `evaluations.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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


class TensorBoard:
    """An event file: tags `episode/NAME` by episode, `step/NAME` and `eval/NAME` by global step."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events = EventFileWriter(str(folder))

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
