"""`runtime` and `runtime_env`: the episode loop, its batches, relay, and where the run keeps its files."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from baton.config.base import Count, FunctionName, PositiveInt, Section


def _lower(value: Any) -> Any:
    """Lets an enumerated option be written in any case, as `FIXED` for `fixed`."""
    return value.lower() if isinstance(value, str) else value


class RuntimeConfig(Section):
    """The episode loop: how many samples an episode has and how they become optimizer steps."""

    num_episode: Count = 5000
    """Episodes in the run; one episode is a rollout and the training on it. 0 runs none."""

    sample_per_episode: PositiveInt = 1000
    """Prompts (repeats included) that enter one episode. Under `fixed`, also its number of training
    samples."""

    num_inference_per_prompt: PositiveInt = 1
    """How often each prompt is repeated inside `sample_per_episode`; the repeats of one prompt form a
    group."""

    num_training_epoch: PositiveInt = 1
    """Passes over the episode's samples; they are reshuffled before every pass but the first."""

    generation_batch_size: PositiveInt = 2
    """Prompts in one generation request, if `models.policy` does not set its own."""

    train_micro_batch_size: PositiveInt = 2
    """Samples in one forward and backward pass of one data-parallel rank."""

    train_global_batch_size: PositiveInt | None = None
    """Samples in one optimizer step over all data-parallel ranks. null: the micro-batch size."""

    train_micro_batch_tokens: Count = 0
    """If not 0, a forward-backward takes as many consecutive samples as have at most so many tokens in all,
    instead of `train_micro_batch_size` of them. A prompt that is shared counts once. A GPU wants 8192 or more."""

    memory_preflight: Literal["refuse", "warn"] = "refuse"
    """What a trainer does at its start if the largest micro-batch that the run may have is estimated not to fit into the
    memory that is free: every sample of `models.policy.seq_length` tokens."""

    tail: Literal["wrap", "mask"] = "wrap"
    """How an episode's last step is filled: `wrap` trains samples from the episode's start again, `mask`
    gives those repeats zero loss weight."""

    drop_last: bool = False
    """Leave out the prompts at the end of the data set that do not fill a whole batch, on every pass over
    it."""

    stream_data_loader_type: Annotated[Literal["fixed", "dynamic"], BeforeValidator(_lower)] = "fixed"
    """`fixed`: an episode yields exactly `sample_per_episode` samples. `dynamic`: as many as the flow
    produces."""

    max_relay_episode: int = 0
    """Finished episodes that are kept for relay, the oldest evicted first. 0: relay is off. Negative: keep
    all."""

    relay_episode_offset: Count = 0
    """First episode (counted from 0) that is stored and relayed."""

    relay_sample_fn: FunctionName | None = None
    """What picks the training samples from the kept episodes: a built-in name (`concat`, `last`, `uniform`,
    `newest_tokens`, `replace_flat`, `age_decayed`, `reward_prioritised`) or `module:callable`. null: the one
    given to `engine.set_relay_sample_fn`."""

    relay_sample_params: dict[str, float | int | str] = Field(default_factory=dict)
    """Keyword arguments of the relay function, such as `k` of `uniform`."""

    save_episode_interval: Count | None = None
    """Episodes between two checkpoints. 0 or null: only the one at the end is written. The run goes on as soon as what is
    saved has been copied to the host's memory; it is written from there."""

    keep_checkpoints: PositiveInt | None = None
    """Checkpoints of the run to keep, the newest; an older one goes once a newer one is whole. null: all."""

    eval_episode_interval: Count = 0
    """Episodes between two evaluations, on the prompts of `prompts.holdout`; there is one before the first episode,
    too. 0: never."""

    log_interval: PositiveInt = 1
    """Optimizer steps between two log lines."""

    data_path: str | None = None
    """JSON Lines file with the prompts, relative to the working directory; used if `prompts` is left out."""

    enable_resume_training: bool = True
    """Go on with the run that `data_checkpoint_path` names, if it names one. false: start a run anew all the same."""

    data_checkpoint_path: str | None = None
    """Directory of the data checkpoints, which say how far a run was at each of its checkpoints, and where that is. The
    same `baton run` given again goes on with that run. null: neither written nor read; `baton run --resume` needs none."""

    max_data_ckpt_nums: PositiveInt | None = None
    """Data checkpoints to keep, the newest. null: all."""

    load_data_checkpoint_iteration: Count | None = None
    """Optimizer step of the checkpoint that a run is resumed from; what came after it is given up. null: the newest."""

    consumed_samples: Count = 0
    """Samples whose prompts to skip at the start."""

    exp_name: str = "baton"
    """Name of the experiment; a directory of this name is made in `output_dir` unless its path already has
    it."""

    output_dir: str = "runs"
    """Directory of everything the run writes, relative to the working directory."""

    seed: Count = 42
    """Seed of every random choice in the run."""

    reproducible: bool | None = None
    """Whether the same run file makes the same run, so that a resumed run goes on as if it had not been interrupted. Each
    response has random numbers of its own, by `seed`, episode and prompt; the default flow yields an episode's groups in the
    order of their prompts; a replica gets its prompts in one request, whatever `generation_batch_size` says (256 at most);
    models that score are asked about one group at a time. null: where all replicas are on a CPU. On a GPU vLLM draws such
    responses one after the other, and the last bits of its numbers depend on what it computes at the same time all the
    same."""

    colocation: list[str] = Field(default_factory=list)
    """Comma-separated lists of models that share GPUs, as `policy,ppo_policy`: each list's processes are laid over the same
    cards, from the first one on. `models.policy.gpu_memory_utilization`, which must be set then, is the rollout's share of
    a card; the trainer has what is left. A model in no list has cards of its own, or those of its trainer group."""

    coalesced_buffer_mb: PositiveInt = 256
    """Size of one bucket of weights on their way, in MiB. Each side holds two at a time, of each sender."""

    # The options below are accepted so that existing run files load; `inert.py` says why each does nothing.

    max_iteration_per_sample: PositiveInt = 1
    """Inert. Turns of a tree search per sample."""

    debug: bool = False
    """Inert. Extra checks of the old engine."""

    nsys: bool = False
    """Inert. Marks ranges for Nsight Systems."""

    profiler_dir: str | None = None
    """Inert. Directory of profiler traces."""

    coalesce_param: bool = True
    """Inert. Flatten parameters before they are sent."""

    concurrent_comm: bool = True
    """Inert. Synchronise parameters from several threads."""

    concurrent_setup: bool = False
    """Inert. Set up all models at the same time."""

    param_sync_comm_type: Annotated[Literal["broadcast", "p2p"], BeforeValidator(_lower)] = "broadcast"
    """Inert. How parameters travel to the rollout."""

    param_sync_max_workers: int | None = None
    """Inert. Threads that synchronise parameters."""

    routed_expert_regrouping_comm_type: Annotated[Literal["alltoall", "allgather"], BeforeValidator(_lower)] = "alltoall"
    """Inert. How the shards of experts are regrouped before they are sent."""

    bucket_size_mb_in_memory_manager: int = 1024
    """Inert. Bucket of the colocation memory manager, in MiB."""

    free_sync_collective_group: bool = False
    """Inert. Destroy communication groups after every synchronisation."""

    cpu_schedule_strategy: Literal["PACK", "SPREAD"] = "SPREAD"
    """Inert. Placement of models without a GPU."""

    validate_param_sync: bool = False
    """Inert. Compare parameters on both sides after a synchronisation."""

    @property
    def global_batch_size(self) -> int:
        """Samples in one optimizer step over all data-parallel ranks."""
        return self.train_global_batch_size or self.train_micro_batch_size

    @property
    def relay_enabled(self) -> bool:
        """Whether any episode is ever relayed."""
        return self.max_relay_episode != 0

    @property
    def relay_limit(self) -> int | None:
        """Finished episodes that relay keeps; None keeps all, 0 means that relay is off."""
        return None if self.max_relay_episode < 0 else self.max_relay_episode

    def relays(self, episode_id: int) -> bool:
        """Whether episode `episode_id` (counted from 0) is stored and trained through relay."""
        return self.relay_enabled and episode_id >= self.relay_episode_offset

    @property
    def run_dir(self) -> str:
        """Directory of this run: `output_dir`, with `exp_name` below it unless the path already names it."""
        path = PurePath(self.output_dir)
        return str(path if self.exp_name in path.parts else path / self.exp_name)


class RuntimeEnvConfig(Section):
    """What the old engine shipped to its cluster. Services run from an installed package, so all of it is
    inert."""

    pip: list[str] = Field(default_factory=list)
    """Inert. Packages to install on every node."""

    py_modules: list[str] = Field(default_factory=list)
    """Inert. Python modules to copy to every node."""

    working_dir: str | None = None
    """Inert. Directory to copy to every node."""

    platform: str = ""
    """Inert. Name of the launcher."""

    excludes: list[str] = Field(default_factory=list)
    """Inert. Files left out of the copy."""
