"""What two ranks find out about adapters in the trainer's state, for `test_lora_states.py`: one function for each thing,
which answers with what the test compares."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from layouts_side import loss_of
from lora_trainer_side import everywhere, last_stage
from roles import write_roles_file
from splits import batch_of

from baton.config.lora import LoraConfig
from baton.config.trainable import TrainableConfig
from baton.errors import BatonError
from models import make_model
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import pack

LORA: dict[str, Any] = {"enable_lora": True, "lora_dim": 4, "lora_scaling": 16.0}
WRITTEN = 2
"""Steps before a checkpoint."""


def arranged(tensor: int, pipeline: int) -> Layout:
    return Layout.arrange(tensor=tensor, pipeline=pipeline, timeout_s=60, seed=0)


def engine_of(layout: Layout, model: Path, lora: dict[str, Any] | None = None, **options: Any) -> Any:
    from services.trainer.megatron.engine import Engine

    base = {"dtype": "float32", "lr": 1e-2, "adam_eps": 1e-5, "use_distributed_optimizer": True}
    config = TrainableConfig(**base | options, lora=LoraConfig(**LORA | (lora or {})))
    return Engine(config, layout, model, total_steps=10)


def message_of(work: Any) -> str:
    """Of the BatonError that `work` raises."""
    try:
        work()
    except BatonError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def rows() -> list[Any]:
    return [pack(batch_of(0))]


def checkpoints(directory: Path) -> dict[str, Any]:
    """Written under TP 2 after WRITTEN steps, read under PP 2 and DP 2, and what is refused."""
    from services.trainer.megatron import checkpoint

    model, layout = directory / "tied", arranged(2, 1)
    engine = engine_of(layout, model)
    for step in range(WRITTEN):
        loss_of(engine, layout, step)
    path = checkpoint.save({"ppo_policy": engine}, directory / "adapter", {"global_step": WRITTEN})
    losses = {"itself": [loss_of(engine, layout, step) for step in range(WRITTEN, WRITTEN + 2)]}
    for name, sizes in {"pp2": (1, 2), "dp2": (1, 1)}.items():
        layout = arranged(*sizes)
        engine = engine_of(layout, model)
        checkpoint.load({"ppo_policy": engine}, path)
        losses[name] = [loss_of(engine, layout, step) for step in range(WRITTEN, WRITTEN + 2)]
    full = engine_of(layout, model, {"enable_lora": False})
    loss_of(full, layout, 0)
    whole = checkpoint.save({"ppo_policy": full}, directory / "full", {"global_step": 1})
    def load(**changes: Any) -> str:
        return message_of(lambda: checkpoint.load({"ppo_policy": engine_of(layout, **{"model": model} | changes)}, path))

    return {
        "losses": losses, "bytes": checkpoint.size_of(path), "bytes of all": checkpoint.size_of(whole),
        "of another rank": load(lora={"lora_dim": 8}), "of another base": load(model=directory / "other"),
        "into a run of all weights": load(lora={"enable_lora": False}),
        "of all weights": message_of(lambda: checkpoint.load({"ppo_policy": engine}, whole)),
    }  # fmt: skip


def one_stage(directory: Path) -> dict[str, Any]:
    """Losses after a checkpoint of adapters that are on the last of two stages only, and after it is read. Every gradient
    is clipped, also on the stage that has none."""
    from services.trainer.megatron import checkpoint

    losses, layout, later = {}, arranged(1, 2), range(WRITTEN, WRITTEN + 2)
    adapters = {"part_module_name": "layers.3"}
    written, read = (engine_of(layout, directory / "tied", adapters, clip_grad=1e-3) for _ in range(2))
    for step in range(WRITTEN):
        loss_of(written, layout, step)
    path = checkpoint.save({"ppo_policy": written}, directory / "one-stage", {"global_step": WRITTEN})
    losses["itself"] = [loss_of(written, layout, step) for step in later]
    checkpoint.load({"ppo_policy": read}, path)
    losses["read"] = [loss_of(read, layout, step) for step in later]
    return losses


def merged_checkpoint(directory: Path) -> dict[str, Any]:
    """Log-probabilities before it was written, and of the run that goes on from it under another layout."""
    from services.trainer.megatron import checkpoint

    merged = {"checkpoint": "merged", "lora_layer": "ColumnParallelLinear,RowParallelLinear"}
    model, layout = directory / "tied", arranged(2, 1)
    engine = engine_of(layout, model, merged)
    before = last_stage(engine.score(rows()))
    loss_of(engine, layout, 0)
    base = {name: held.clone() for name, held in engine.policy.named_parameters() if ".lora." not in name}
    path = checkpoint.save({"ppo_policy": engine}, directory / "merged", {"global_step": 1})
    unchanged = all(torch.equal(held, base[name]) for name, held in engine.policy.named_parameters() if name in base)
    written = last_stage(engine.score(rows()))
    layout = arranged(1, 2)
    engine = engine_of(layout, model, merged)
    checkpoint.load({"ppo_policy": engine}, path)
    again = checkpoint.save({"ppo_policy": engine}, directory / "merged-again", {"global_step": 1})
    later = engine_of(layout, model, merged)
    twice = message_of(lambda: checkpoint.load({"ppo_policy": later}, again))
    tied = message_of(lambda: engine_of(layout, model, {"checkpoint": "merged"}))
    return {
        "before": before, "written": written, "read": last_stage(engine.score(rows())), "base unchanged": unchanged,
        "factors": everywhere(engine.policy, layout, gradients=False), "a tied embedding": tied,
        "resumed twice": twice, "read twice": last_stage(later.score(rows())),
    }  # fmt: skip


def shared_base(directory: Path) -> dict[str, Any]:
    """A PPO run whose reference and critic are on the policy's model: what is in memory once, and what steps change."""
    from baton.config import load_run
    from baton.config.groups import trainer_groups
    from services.trainer.megatron.names import base_parameters
    from services.trainer.models import Models

    model, layout = directory / "tied", arranged(2, 1)
    trained = {"lr": 1e-2, "lora": LORA}
    roles = {"reference": {}, "ppo_value": trained, "ppo_policy": trained | {"tensor_model_parallel_size": 2}}
    own_directory = directory / f"rank-{layout.world_rank}"
    own_directory.mkdir()
    run = load_run(write_roles_file(own_directory, model, {"name": "ppo"}, **roles))
    models = Models(run, trainer_groups(run)["trainer"], layout)
    policy, value, reference = (models.by_role[role] for role in ("ppo_policy", "ppo_value", "reference"))
    own = dict(base_parameters(policy.policy))
    apart = [name for name, held in base_parameters(value.policy) if held.data_ptr() not in {
        other.data_ptr() for other in own.values()
    }]  # fmt: skip
    before = {"reference": reference.score(rows()), "value": value.score(rows())}
    _ascend(policy)
    after_policy = {"policy": policy.score(rows()), "reference": reference.score(rows()), "value": value.score(rows())}
    _ascend(value)
    after_value = {"policy": policy.score(rows()), "value": value.score(rows())}
    found = {"before": before, "after the policy's step": after_policy, "after the critic's": after_value}
    return {
        "reference is the policy": reference.policy is policy.policy, "the critic's own": apart,
        "scores": {when: {role: last_stage(scores) for role, scores in of.items()} for when, of in found.items()},
    }  # fmt: skip


def _ascend(engine: Any) -> None:
    """One step for larger outputs."""

    def loss(_: int, output: Any) -> tuple[torch.Tensor, None]:
        return -(output.logprobs_N if hasattr(output, "logprobs_N") else output).mean(), None

    engine.forward_backward(rows(), loss)
    engine.step()


def dropout(directory: Path) -> dict[str, Any]:
    """Gradients with dropout from the same seed, also with recompute; and scores, in which there is none."""
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model, layout, found = directory / "tied", arranged(2, 1), {}
    for name, options, seed in (
        ("kept", {}, 5), ("computed again", {"recompute_granularity": "full"}, 5), ("of another seed", {}, 6),
    ):  # fmt: skip
        engine = engine_of(layout, model, {"lora_dropout": 0.3}, **options)
        model_parallel_cuda_manual_seed(seed)
        engine.forward_backward(rows(), lambda _, scores: (-scores.logprobs_N.mean(), None))
        engine.finish()
        found[name] = everywhere(engine.policy, layout, gradients=True)
    _ascend(engine)
    twice = [last_stage(engine.score(rows())) for _ in range(2)]
    return {"gradients": found, "scored twice": twice}


def regions(directory: Path) -> dict[str, Any]:
    """What the ranks send of adapters and of merged weights, put together; and what it is to be."""
    from services.trainer.megatron.hf import gather_hf
    from services.trainer.megatron.lora import adapter_regions
    from services.trainer.megatron.lora.merged import merged_weights
    from services.trainer.megatron.regions import sent

    model, found = directory / "untied", {}
    for name, sizes in {"tp2": (2, 1), "pp2": (1, 2)}.items():
        layout = arranged(*sizes)
        engine = engine_of(layout, model)
        held = list(sent(engine.policy, layout, torch.float32))
        loss_of(engine, layout, 0)
        merged_weights(engine.policy)
        exported: list[Any] = [None, None]
        dist.all_gather_object(exported, {key: value.numpy().copy() for key, value in gather_hf(engine.policy, layout)})
        found[name] = {
            "adapters": together(adapter_regions(engine.policy, layout, torch.float32)), "merged": together(held),
            "factors": everywhere(engine.policy, layout, gradients=False), "exported": exported[0] | exported[1],
        }  # fmt: skip
    return found


def together(regions: Any) -> dict[str, np.ndarray]:
    """All ranks' regions; fails if one is sent twice, or none."""
    own = [(one.part.name, one.part.shape, one.part.rows, one.part.columns, one.matrix.numpy().copy()) for one in regions]
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    whole: dict[str, np.ndarray] = {}
    for name, shape, rows, columns, values in (part for rank in ranks for part in rank):
        matrix = whole.setdefault(name, np.full(shape, np.nan, np.float32)).reshape(shape[0], -1)
        place = matrix[slice(*rows), slice(*columns)]
        assert np.isnan(place).all(), f"{name} is sent twice"
        place[:] = values
    assert not any(np.isnan(values).any() for values in whole.values())
    return whole


def estimates(directory: Path) -> dict[str, tuple[int, int]]:
    """By layout and options: numbers in this rank's factors, and what the estimate says."""
    from services.trainer.megatron.lora.factors import factors_of
    from services.trainer.megatron.lora.memory import adapter_count

    model, found = directory / "untied", {}
    for sizes in ((2, 1), (1, 2)):
        layout = arranged(*sizes)
        for more in ({}, {"column_only_qkv": True}, {"part_module_name": "layers.3.mlp"}, {"part_module_name": "v_proj"}):
            engine = engine_of(layout, model, more)
            held = sum(factor.parameter.numel() for factor in factors_of(engine.policy))
            found[f"{sizes} {more}"] = held, adapter_count(engine.shape, engine.lora, layout, "logprobs")
    return found


def make_models(directory: Path) -> None:
    """Those that the functions find in their directory."""
    make_model(directory / "tied")
    make_model(directory / "other", seed=1)
    make_model(directory / "untied", "qwen2", tied=False, vocabulary=513)  # at TP 2 padded


WORK = {
    "checkpoints": checkpoints, "one stage": one_stage, "merged checkpoint": merged_checkpoint, "shared base": shared_base,
    "dropout": dropout, "regions": regions, "estimates": estimates,
}  # fmt: skip


def work(rank: int, size: int, port: int, directory: Path) -> dict[str, Any]:
    """All of WORK, on one of two ranks."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    found = {name: function(directory) for name, function in WORK.items()}
    dist.destroy_process_group()
    return found
