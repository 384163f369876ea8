"""Stand-in of the coordinator: two episodes of fixed numbers, or an endless one, or a failure."""

import json
import threading
from pathlib import Path

import stand_in

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.api.coordinator.v1.coordinator_pb2_grpc import (
    CoordinatorServiceServicer,
    add_CoordinatorServiceServicer_to_server,
)


class Coordinator(CoordinatorServiceServicer):
    def __init__(self, options) -> None:
        self.told = stand_in.behaviours("coordinator")
        self.output_dir = Path(options.output_dir)
        self.stopped = threading.Event()
        self.status = pb.RunStatus(num_episodes=2, output_dir=options.output_dir)

    def StartRun(self, request, context):
        step = request.resume_step if request.HasField("resume_step") else None
        Path("start_was_asked").write_text(json.dumps({"resume": request.resume, "resume_step": step}))
        self.status.run_id = request.run_id
        self.status.state = pb.RUN_STATE_RUNNING
        self.status.dashboard_url = "http://127.0.0.1:1234"
        return pb.StartRunResponse(status=self.status)

    def StopRun(self, request, context):
        self.status.state = pb.RUN_STATE_STOPPED
        self.stopped.set()
        (self.output_dir / "stop_was_asked").touch()
        return pb.StopRunResponse(status=self.status)

    def GetRun(self, request, context):
        return pb.GetRunResponse(status=self.status)

    def WatchRun(self, request, context):
        for episode in range(2):
            for phase in ("generate", "train"):
                self.status.episode, self.status.phase = episode, phase
                yield pb.WatchRunResponse(status=self.status)
            if "endless" in self.told:
                self.stopped.wait(600)
                return
            if "fail" in self.told:
                self.status.state, self.status.error = pb.RUN_STATE_FAILED, "the loss is not a number"
                yield pb.WatchRunResponse(status=self.status)
                return
            metrics = {"reward_mean": 0.25 + episode / 2, "loss": 0.5, "seconds/train": 1.5, "seconds/generate": 2.5}
            self.status.phase = ""
            yield pb.WatchRunResponse(status=self.status, report=pb.EpisodeReport(episode_id=episode, metrics=metrics))
        (self.output_dir / "summary.json").write_text(json.dumps({"first_reward_mean": 0.25, "last_reward_mean": 0.75}))
        self.status.state, self.status.episode = pb.RUN_STATE_SUCCEEDED, 2
        yield pb.WatchRunResponse(status=self.status)


def add(server, options):
    add_CoordinatorServiceServicer_to_server(Coordinator(options), server)
    return {"rest_address": "127.0.0.1:1234"}


stand_in.serve("coordinator", add)
