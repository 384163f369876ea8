"""The options that every entry of `models` has, whatever its role."""

from typing import Any, Literal

from pydantic import Field

from baton.config.base import Count, PositiveInt, Section
from baton.config.batch_generation import BatchGenerationConfig
from baton.config.lora import LoraConfig

BUILTIN_MODEL = "smollm2-135m-instruct"


def gpus_per_copy(data: dict[str, Any]) -> int:
    """Processes that hold one copy of a model, from its validated sizes; one process drives one GPU."""
    return data["tensor_model_parallel_size"] * data["pipeline_model_parallel_size"] * data["expert_model_parallel_size"]


def _replicas(data: dict[str, Any]) -> int:
    return max(1, data["num_gpu"] // gpus_per_copy(data)) if data["num_gpu"] else 1


class RoleConfig(Section):
    """A model in one of its roles: what it is, where it runs, and over how many processes it is spread."""

    model: str | None = None
    """Hugging Face directory, hub id, or the built-in name `smollm2-135m-instruct`. null: the model of the
    role that this one belongs to; for `policy` the directory in `tokenizer`, else the built-in."""

    tokenizer: str | None = None
    """Directory or hub id of the tokenizer. null: the policy's, if the model is the policy's; else the model's
    own."""

    load: str | None = None
    """Directory of a checkpoint that Baton wrote, or of Hugging Face files, whose weights to start from, in a model that the
    trainer hosts; it must be of the same kind as `model`, which also says what the tokenizer is. Left out for a `reference`
    that is the policy's model, that of `ppo_policy`; for `value`, that of `ppo_value`. null: the weights of `model`."""

    trainable: bool = False
    """Whether this role is trained."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the weights and of the arithmetic. Left out for a `reference` that is the policy's model, that of
    `ppo_policy`; for `value`, that of `ppo_value`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. `auto`: on a GPU if there is one."""

    model_config_file: str = ""
    """YAML file with more options of this section, relative to the run file; the section's own win. Empty:
    none."""

    num_gpu: Count = 0
    """GPUs of the model over all replicas. 0: as many as its sizes and replicas need, or none on a CPU."""

    tensor_model_parallel_size: PositiveInt = 1
    """Processes that share each layer."""

    pipeline_model_parallel_size: PositiveInt = 1
    """Processes that the layers are divided over."""

    expert_model_parallel_size: PositiveInt = 1
    """Processes that the experts of a mixture-of-experts layer are divided over."""

    num_replica: PositiveInt = Field(default_factory=_replicas)
    """Copies of the model that work independently. Left out: what `num_gpu` allows, else 1."""

    generation_batch_size: int = -1
    """Prompts in one request, of `policy`. 0 or less: `runtime.generation_batch_size`."""

    sync_frequency: Count = 1
    """Episodes between two transfers of the trainer's weights to `policy`. 0: never, not even at the
    start."""

    adaptive_parallel_strategy_on_checkpoint: bool = True
    """Load a checkpoint that was written under other parallel sizes, of which each process reads what it keeps. false: a
    difference is an error."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model's files. Static batches run a tokenizer's alone, as their model
    is one of the trainer's."""

    lora: LoraConfig = Field(default_factory=LoraConfig)
    """Low-rank adapters; only a trainable model has them."""

    batch_generation: BatchGenerationConfig = Field(default_factory=BatchGenerationConfig)
    """The order of prompts and the start of static batches; of `policy` with `generator: megatron`."""

    omp_threads: PositiveInt | None = None
    """CPU threads of each process. null: the libraries decide."""

    # The options below are accepted so that existing run files load; `inert.py` says why each does nothing.

    num_cpu: Count = 0
    """Inert. CPU cores of the model over all replicas."""

    gpu_per_process: PositiveInt | None = None
    """Inert. GPUs that one process drives."""

    cpu_per_process: PositiveInt | None = None
    """Inert. CPU cores that one process has."""

    zero_size: PositiveInt = 1
    """Inert. Processes that share the optimizer state in the old engine's other backend."""

    model_type: str = ""
    """Inert. A name without effect."""

    offload_weights: bool = False
    """Inert. Move idle weights to host memory."""

    free_grad_buffers: bool = False
    """Inert. Free idle gradient buffers."""

    offload_optimizer_states: bool = False
    """Inert. Move idle optimizer state to host memory."""

    free_memory: bool = False
    """Inert. All three of the above."""

    force_free_memory: bool = False
    """Inert. The above without colocation too."""

    @property
    def gpus_per_replica(self) -> int:
        """Processes that hold one copy of the model; one process drives one GPU."""
        return gpus_per_copy(dict(self))
