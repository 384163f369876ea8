"""`models.policy`: the rollout engine, vLLM."""

from typing import Annotated, Any, Literal

from pydantic import Field

from baton.config.base import Count, PositiveFloat, PositiveInt
from baton.config.sampling import SamplingConfig


class PolicyConfig(SamplingConfig):
    """The model that answers the prompts: its sampling, and the engine's scheduler, cache and start-up."""

    trainable: Literal[False] = False
    """Always false: `ppo_policy` is trained, and its weights are sent here."""

    generator: Literal["vllm", "megatron"] = "vllm"
    """What generates: vLLM, or static batches on Megatron-Core, which `batch_generation` is about. Options that only
    one of the two has are refused with the other."""

    max_num_batched_tokens: PositiveInt | None = None
    """Upper limit on the tokens of one engine step; a good start is batch size * (seq_length - prompt
    length). null: the engine decides."""

    max_num_seqs: PositiveInt | None = None
    """Upper limit on the sequences of one engine step, or of one static batch. null: the engine decides; a
    static batch has 64."""

    max_outstanding_responses: PositiveInt = 4096
    """Responses that a replica takes on before it refuses further requests until some are done. Clients of
    the SDK wait and ask again."""

    block_size: PositiveInt | None = None
    """Tokens in one block of the key-value cache. null: the engine decides."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that the engine may take, weights and cache together. On a CPU it is of the
    machine's memory, and holds while `cpu_kv_cache_gib` is null."""

    cpu_kv_cache_gib: PositiveInt | None = 1
    """Size of the key-value cache of one replica on a CPU, in GiB. null: what `gpu_memory_utilization`
    leaves."""

    enforce_eager: bool = False
    """Neither compile the model nor capture CUDA graphs: a quicker start, a slower rollout."""

    seed: Count | None = None
    """Seed of the engine. null: `runtime.seed`."""

    apply_replica_id_to_seed: bool = True
    """Add a replica's id to its seed. false: all replicas draw the same random numbers."""

    vllm_load_format: Literal["auto", "safetensors", "pt", "gguf", "dummy"] = "auto"
    """Format of the weights that the engine starts from. `dummy`: random ones, until the trainer sends its
    own."""

    quantization: str | None = None
    """Quantisation method of the engine. null: what the model's files say."""

    revision: str | None = None
    """Branch, tag or commit of the model on the hub, for every role that has this model. null: the default one."""

    tokenizer_revision: str | None = None
    """Branch, tag or commit of `tokenizer` on the hub, for every role that has it. null: the default one."""

    tokenizer_mode: str = "auto"
    """Which implementation of the tokenizer the engine takes."""

    weight_staging_gib: PositiveFloat | None = None
    """Memory of each worker, in GiB, in which weights may be kept that arrive while it goes on generating: it then pauses
    only to copy them. All the weights must fit. null: it pauses while they arrive."""

    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the engine, under vLLM's own names, passed on as they are."""

    openai_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the OpenAI-compatible HTTP server, under vLLM's own names: those on keys, tools and chat
    templates."""

    max_recorded_tokens: PositiveInt = 50_000_000
    """Tokens that agents may have sampled through that server and nobody has taken yet. At the limit it
    refuses further requests."""

    # The options below are accepted so that existing run files load; `inert.py` says why each does nothing.

    max_paddings: Count = 256
    """Inert. Upper limit on the padding tokens of a batch."""

    swap_space: float = 4.0
    """Inert. Host memory for preempted sequences, in GiB."""

    num_scheduler_steps: PositiveInt = 1
    """Inert. Engine steps for one decision of the scheduler."""

    max_context_len_to_capture: PositiveInt = 8192
    """Inert. Longest sequence that CUDA graphs cover."""

    sliding_window: PositiveInt | None = None
    """Inert. Width of the attention's window."""

    allow_padding_num_layers: bool = False
    """Inert. Uneven division of the layers over pipeline stages."""

    vllm_prompt_key: str = "prompt"
    """Inert. Key of the prompt in a batch of the old engine."""

    vllm_input_ids_key: str = "input_ids"
    """Inert. Key of the token ids in a batch of the old engine."""

    num_tokenize_threads: PositiveInt = 4
    """Inert. Threads that tokenise prompts."""

    init_shuffle_prompts: Count = 0
    """Inert. How the old engine repeated and shuffled prompts."""

    log_metrics: bool = False
    """Inert. Log the engine's throughput."""

    log_stats: bool = False
    """Inert. Log the engine's statistics."""

    @property
    def batch_rows(self) -> int:
        """Sequences in one static batch at most."""
        return self.max_num_seqs or 64

    @property
    def replicas(self) -> int:
        """Engines that run side by side; their ids are 0 to replicas - 1."""
        return self.num_replica

    @property
    def effective_temperature(self) -> float:
        """`temperature`, or 0 under beam search."""
        return 0.0 if self.use_beam_search else self.temperature
