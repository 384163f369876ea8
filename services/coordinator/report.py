"""What an episode did, as numbers; where they go (sinks.py), and what a run leaves at its end: reward.png, summary.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from baton.config.logging import LoggingConfig
from baton.errors import ConflictError
from baton.flow import Group
from baton.publication import Publication
from baton.samples import FinishReason, RewardStatus, Samples
from services.coordinator.sinks import EPISODES_FILE, EVALUATIONS_FILE, JsonLines, JsonRows, Sink, open_sinks
from services.coordinator.state import RunState

PLOTS = {"reward_mean": "reward.png", "loss": "loss.png"}
"""The first metric that the episodes have is drawn."""
SUMMARY_EPISODES = 2
"""The summary compares the mean reward of so many episodes at the run's two ends."""


@dataclass(frozen=True, slots=True)
class EpisodeReport:
    """One finished episode. `policy_version` and `weights_digest` name the weights that sampled it."""

    episode_id: int
    policy_version: int
    weights_digest: str
    metrics: dict[str, float]
    """Every value is finite; what could not be measured is absent."""


class EpisodeTally:
    """Collects what the report says of an episode, as its groups and steps pass by."""

    def __init__(self, *, rolled_out: bool = True) -> None:
        """Answers that were not rolled out have neither rewards of their own nor an age."""
        self._rolled_out = rolled_out
        self.samples = 0
        self._groups: list[Samples] = []
        self._scores: dict[str, list[np.ndarray]] = {}
        self._steps: list[dict[str, float]] = []
        self._computed_tokens = 0
        self._others: dict[str, float] = {}

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Takes metrics that are reported as they are."""
        self._others |= metrics

    def add_group(self, group: Group) -> None:
        """Counts a group as it goes to the buffer."""
        self.samples += len(group.samples)
        self._groups.append(group.samples)
        for name, values in group.scores.items():
            self._scores.setdefault(name, []).append(values)

    def add_step(self, metrics: Mapping[str, float], computed_tokens: int) -> None:
        """Counts an optimizer step; what the trainer said of it is averaged over the episode's steps."""
        self._steps.append(dict(metrics))
        self._computed_tokens += computed_tokens

    def ages(self, policy_version: int) -> dict[str, float]:
        """How far behind `policy_version` the weights are that sampled the episode."""
        if not self._rolled_out:
            return {}
        return sample_ages(np.concatenate([samples.policy_version_max for samples in self._groups]), policy_version)

    def metrics(self, seconds: Mapping[str, float], publication: Publication | None) -> dict[str, float]:
        """All metrics of the episode, given the seconds in each phase and the weight update at its end, if any."""
        total_s = sum(seconds.values())
        found = self._train_metrics() | self._rollout_metrics() | self._others
        tokens = found.get("response_tokens", 0.0)
        found |= {f"seconds/{phase}": value for phase, value in seconds.items()} | {"seconds/episode": total_s}
        found["tokens_per_s"] = tokens / max(total_s, 1e-9)
        found["rollout_tokens_per_s"] = tokens / max(seconds.get("generate", 0.0), 1e-9)
        if publication is not None:
            phases = ("gather", "wire", "load", "digest", "verify", "transfer", "pause", "total")
            found |= {f"publish/{phase}_s": getattr(publication, f"{phase}_s") for phase in phases}
            found["publish/bytes"] = float(publication.bytes)
            found["publish/gigabytes_per_s"] = publication.gigabytes_per_s
            found["publish/direct"] = float(publication.direct)
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def _rollout_metrics(self) -> dict[str, float]:
        if not self.samples:
            return {"samples": 0.0}
        lengths = np.concatenate([samples.response_ids.lengths for samples in self._groups])
        counts = {
            "samples": self.samples,
            "response_length_mean": mean_of_finite(lengths),
            "response_tokens": float(lengths.sum()),
        }
        return counts | self._reward_metrics() if self._rolled_out else counts

    def _reward_metrics(self) -> dict[str, float]:
        status = np.concatenate([samples.reward_status for samples in self._groups])
        rewards = np.concatenate([samples.rewards for samples in self._groups])[status == RewardStatus.VALUE]
        finish = np.concatenate([samples.finish_reasons for samples in self._groups])
        return {
            "scored_samples": len(rewards),
            "reward_mean": mean_of_finite(rewards),
            "reward_std": float(rewards.std(dtype=np.float64)) if len(rewards) else math.nan,
            "reward_abstained": mean_of_finite(status == RewardStatus.ABSTAIN),
            "reward_failed": mean_of_finite((status == RewardStatus.ERROR) | (status == RewardStatus.TIMEOUT)),
            "finish_rate": mean_of_finite(finish == FinishReason.STOP),
            "truncated_share": mean_of_finite(finish == FinishReason.LENGTH),
        } | {f"reward/{name}": mean_of_finite(np.concatenate(parts)) for name, parts in self._scores.items()}

    def _train_metrics(self) -> dict[str, float]:
        names = {name: None for step in self._steps for name in step}  # a dict keeps their order
        means = {name: mean_of_finite([step[name] for step in self._steps if name in step]) for name in names}
        return means | {"train_steps": len(self._steps), "computed_tokens": self._computed_tokens}


def sample_ages(versions: np.ndarray, policy_version: int) -> dict[str, float]:
    """Metrics of the age of trained samples: how many versions the policy is ahead of each one's weights."""
    ages = policy_version - versions
    return {"sample_age_mean": float(ages.mean()), "sample_age_max": float(ages.max())}


def mean_of_finite(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the finite ones; NaN if there are none."""
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if len(array) else math.nan


class RunReport:
    """The run's folder and all reports so far."""

    def __init__(self, folder: Path, *, resuming: bool = False) -> None:
        """Makes the folder. Raises ConflictError if another run wrote its metrics there; they are this one's if it is
        `resuming`."""
        self.folder = folder
        self.episodes: list[EpisodeReport] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / EPISODES_FILE).exists() and not resuming:
            raise ConflictError(
                f"{folder} holds the metrics of another run; start under another run id, move it away, or resume that run"
            )
        self._lines = JsonLines(folder)
        self._sinks: list[Sink] = [self._lines]
        self._rows: JsonRows | None = None

    def roll_back(self, episode: int, global_step: int) -> None:
        """Before `open`: what came after that step, before that episode, leaves the metrics."""
        self._rows = self._lines.roll_back(episode, global_step)
        for row in self._rows[EPISODES_FILE]:
            metrics = dict(row)
            names = (metrics.pop(name) for name in ("episode", "policy_version", "weights_digest"))
            self.episodes.append(EpisodeReport(*names, metrics))

    def evaluation(self, finished_episodes: int) -> dict[str, float] | None:
        """What a run that was rolled back has of its evaluation after so many episodes."""
        for row in (self._rows or {}).get(EVALUATIONS_FILE, ()):
            if row["finished_episodes"] == finished_episodes:
                return {name: value for name, value in row.items() if name not in ("global_step", "finished_episodes")}
        return None

    def open(self, config: LoggingConfig, run_id: str) -> None:
        """Adds the sinks that the run file asks for, which may take seconds."""
        self._sinks += open_sinks(config, self.folder, run_id, self._rows)

    def add(self, report: EpisodeReport) -> None:
        """Takes a finished episode."""
        self.episodes.append(report)
        names = {"policy_version": report.policy_version, "weights_digest": report.weights_digest}
        for sink in self._sinks:
            sink.episode(report.episode_id, names, report.metrics)

    def add_evaluation(self, global_step: int, finished_episodes: int, metrics: Mapping[str, float]) -> None:
        """Takes an evaluation of the weights after so many episodes and optimizer steps."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for sink in self._sinks:
            sink.evaluation(global_step, finished_episodes, finite)

    def add_step(self, global_step: int, where: tuple[int, int, int], metrics: Mapping[str, float]) -> None:
        """Takes an optimizer step, by its (episode, pass, step)."""
        names = dict(zip(("episode", "pass", "step"), where, strict=True))
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        for sink in self._sinks:
            sink.step(global_step, names, finite)

    def rewards(self) -> list[tuple[int, float]]:
        """(episode, mean reward) of all episodes that have one."""
        return self._curve("reward_mean")

    def _curve(self, metric: str) -> list[tuple[int, float]]:
        return [(r.episode_id, r.metrics[metric]) for r in self.episodes if metric in r.metrics]

    def finish(self, state: RunState, seconds: Mapping[str, float], export: str) -> None:
        """Writes summary.json and, if there is anything to see, a plot of rewards or else of losses. Nothing takes metrics
        afterwards."""
        try:
            self._write_summary(state, seconds, export)
            drawn = next((metric for metric in PLOTS if self._curve(metric)), None)
            if drawn:
                _plot(self._curve(drawn), self.folder / PLOTS[drawn], f"{state.run_id}: {drawn} by episode")
        finally:
            for sink in self._sinks:
                sink.close()

    def _write_summary(self, state: RunState, seconds: Mapping[str, float], export: str) -> None:
        means = [reward for _, reward in self.rewards()]
        first, last = mean_of_finite(means[:SUMMARY_EPISODES]), mean_of_finite(means[-SUMMARY_EPISODES:])
        summary = {
            "run_id": state.run_id,
            "state": state.life,
            "error": state.error,
            "episodes": len(self.episodes),
            "first_reward_mean": _or_none(first),
            "last_reward_mean": _or_none(last),
            "reward_gain": _or_none(last - first),
            "policy_version": state.policy_version,
            "weights_digest": state.weights_digest,
            "global_step": state.global_step,
            "elapsed_s": state.elapsed_s,
            "seconds": dict(seconds),
            "checkpoint": state.checkpoint,
            "export": export,
        }
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plot(points: list[tuple[int, float]], path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import, and only needed at the end
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color="#2563eb")
    axes.set(title=title, xlabel="episode")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def brief(metrics: Mapping[str, float]) -> str:
    """The metrics that a log line shows."""
    names = ("reward_mean", "loss", "grad_norm", "mismatch_kl", "response_length_mean", "seconds/episode")
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
