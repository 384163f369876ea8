"""The HTTP face, read-only: /status, /metrics, /healthz, and a dashboard at /. /openapi.json and /docs describe it."""

from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, Field

from services.coordinator.coordinator import Coordinator
from services.coordinator.replicas import ReplicaHealth
from services.coordinator.state import Life

DASHBOARD = Path(__file__).parent / "static" / "dashboard.html"

RECENT_EPISODES = 20
"""Episodes whose metrics /status gives in full."""

CURVE_POINTS = 500
"""/status gives at most so many points of the reward curve; a longer one is thinned."""


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class ReplicaStatus(BaseModel):
    """One rollout replica, as the coordinator sees it."""

    address: str
    state: ReplicaHealth
    reason: str = Field(description="why it is not healthy; empty if it is")
    policy_version: int = Field(description="version that it was last known to serve")
    deaths: int = Field(description="how often its process was found to be gone")
    outstanding_prompts: int = Field(description="prompts sent to it and not yet answered")


class EpisodeStatus(BaseModel):
    """One finished episode."""

    episode: int
    policy_version: int = Field(description="weights that sampled it")
    weights_digest: str
    metrics: dict[str, float]


class Status(BaseModel):
    """The run, from afar and close up."""

    run_id: str = Field(description="empty: no run was started")
    state: Life
    episode: int = Field(description="0-based episode in progress, or their number once they are done")
    num_episodes: int
    phase: str
    waiting_for: str = Field(description="service and address that the phase waits for")
    policy_version: int
    weights_digest: str
    global_step: int
    elapsed_s: float
    error: str
    output_dir: str
    checkpoint: str
    rewards: list[tuple[int, float]] = Field(description="(episode, mean reward)")
    seconds: dict[str, float] = Field(description="by phase, since the run began")
    replicas: list[ReplicaStatus]
    recent: list[EpisodeStatus] = Field(description="the last episodes, oldest first")


def build_app(coordinator: Coordinator) -> FastAPI:
    """The HTTP application of one coordinator."""
    app = FastAPI(title="Baton coordinator", description="Read-only view of a run.", version="1")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_RunCollector(coordinator))

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> Health:
        return Health()

    @app.get("/status", summary="How far the run is, what it waits for, and its last episodes")
    async def status() -> Status:
        return _status(coordinator)

    @app.get("/metrics", summary="The same as Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def dashboard() -> FileResponse:
        return FileResponse(DASHBOARD, media_type="text/html")

    return app


def _status(coordinator: Coordinator) -> Status:
    event = coordinator.get_run()
    state, run = event.state, coordinator.run
    curve = run.driver.report.rewards() if run else []
    stride = -(-len(curve) // CURVE_POINTS) or 1
    return Status(
        run_id=state.run_id,
        state=state.life,
        episode=state.episode,
        num_episodes=state.num_episodes,
        phase=state.phase,
        waiting_for=state.waiting_for,
        policy_version=state.policy_version,
        weights_digest=state.weights_digest,
        global_step=state.global_step,
        elapsed_s=event.elapsed_s,
        error=state.error,
        output_dir=state.output_dir,
        checkpoint=state.checkpoint,
        rewards=curve[::stride],
        seconds=dict(run.driver.clock.total_s) if run else {},
        replicas=[
            ReplicaStatus(
                address=replica.address,
                state=replica.health,
                reason=replica.reason,
                policy_version=replica.version,
                deaths=replica.deaths,
                outstanding_prompts=replica.outstanding,
            )
            for replica in (run.driver.fleet.replicas if run else [])
        ],
        recent=[
            EpisodeStatus(
                episode=report.episode_id,
                policy_version=report.policy_version,
                weights_digest=report.weights_digest,
                metrics=report.metrics,
            )
            for report in (run.driver.report.episodes[-RECENT_EPISODES:] if run else [])
        ],
    )


class _RunCollector:
    """Reads the run when it is scraped, so that no number is kept twice."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def collect(self) -> Iterator[Metric]:
        status = _status(self._coordinator)
        life = GaugeMetricFamily("baton_run_state", "1 for the state that the run is in", labels=["state"])
        for name in Life:
            life.add_metric([name], float(name == status.state))
        yield life
        gauges = {
            "baton_run_episode": ("episode in progress", status.episode),
            "baton_run_episodes": ("episodes that the run will have", status.num_episodes),
            "baton_policy_version": ("newest committed weights", status.policy_version),
            "baton_global_step": ("optimizer steps taken", status.global_step),
            "baton_run_elapsed_seconds": ("since the run began", status.elapsed_s),
        }
        for name, (documentation, value) in gauges.items():
            yield GaugeMetricFamily(name, documentation, value)
        seconds = CounterMetricFamily("baton_phase_seconds", "time in each phase", labels=["phase"])
        for phase, value in status.seconds.items():
            seconds.add_metric([phase], value)
        yield seconds
        episode = GaugeMetricFamily("baton_episode_metric", "metrics of the last finished episode", labels=["name"])
        for name, value in (status.recent[-1].metrics if status.recent else {}).items():
            episode.add_metric([name], value)
        yield episode
        waiting = GaugeMetricFamily("baton_outstanding_prompts", "prompts a replica has not answered", labels=["address"])
        for replica in status.replicas:
            waiting.add_metric([replica.address], replica.outstanding_prompts)
        yield waiting
        healthy = GaugeMetricFamily("baton_replica_healthy", "1 while a replica gets requests", labels=["address"])
        deaths = CounterMetricFamily("baton_replica_deaths", "how often a replica's process was gone", labels=["address"])
        for replica in status.replicas:
            healthy.add_metric([replica.address], float(replica.state is ReplicaHealth.HEALTHY))
            deaths.add_metric([replica.address], replica.deaths)
        yield healthy
        yield deaths
