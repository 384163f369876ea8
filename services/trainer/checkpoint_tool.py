"""What `baton ckpt` has done with torch: `python -m services.trainer.checkpoint_tool import-hf | export-hf | reshard ...`.

Import and export are one process; `reshard` runs under torchrun with as many ranks as the new layout has, on the CPU.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from baton.errors import BatonError, InvalidRequestError

RANK_TIMEOUT_S = 1800.0


def import_hf(options: argparse.Namespace) -> None:
    """Hugging Face files become a checkpoint."""
    from services.common.model_store import resolve_model

    source = resolve_model(options.model)
    _on_cpu()
    from services.trainer.megatron.hf_checkpoint import import_hf as imported

    size = imported(source, options.target, options.role)
    sys.stdout.write(f"{options.target}: {size:,} bytes of {options.role}, for models.{options.role}.load\n")


def export_hf(options: argparse.Namespace) -> None:
    """One model of a checkpoint becomes Hugging Face files."""
    _on_cpu()
    from services.trainer.megatron.hf_checkpoint import export_hf_directory

    size = export_hf_directory(options.path, options.target, options.role, options.model)
    sys.stdout.write(f"{options.target}: {size:,} bytes of weights\n")
    if not any(options.target.glob("tokenizer*")):
        sys.stderr.write("note: the tokenizer is no longer where the run had it; --model DIR says where it is\n")


def _on_cpu() -> None:
    from services.trainer.megatron.cpu import redirect_cuda_to_cpu

    redirect_cuda_to_cpu()


def reshard(options: argparse.Namespace) -> None:
    """A checkpoint is written anew, as ranks of another layout would have written it."""
    from baton.checkpoint_files import facts_of, read_marker

    marker = read_marker(options.path)
    if options.target.exists():
        raise InvalidRequestError(f"{options.target} is there already, and nothing was written: choose another name")
    from services.trainer.megatron.parallel import Layout

    layout = Layout.start(
        tensor=options.tensor, pipeline=options.pipeline, device="cpu", timeout_s=RANK_TIMEOUT_S, seed=0
    )
    import torch.distributed as dist

    from services.trainer.megatron import checkpoint
    from services.trainer.megatron.checkpoint_saver import CheckpointSaver

    roles = marker["roles"]
    with tempfile.TemporaryDirectory() as configs:
        models = {role: _model(role, known, options.path, layout, Path(configs) / role) for role, known in roles.items()}
        for role, model in models.items():
            if roles[role]["updates"] is not None:
                checkpoint.load_checkpoint(model, model.optimizer, None, load=options.path)
        said = checkpoint.marker_of(models, facts_of(marker), marker["lineage"])
    for role, known in roles.items():
        said["roles"][role] |= {name: known[name] for name in ("source", "schedule", "lora")}
    saver = CheckpointSaver(RANK_TIMEOUT_S)
    saver.start(options.target, checkpoint.state_of(models), said, among_others=True)
    saver.wait(options.target)
    if layout.world_rank == 0:
        sys.stdout.write(f"{options.target}: {checkpoint.size_of(options.target):,} bytes\n")
    dist.destroy_process_group()


def _model(role: str, known: dict, path: Path, layout: object, directory: Path) -> object:
    """One role's model with the checkpoint's weights; with an optimizer, if the checkpoint has that. `directory` gets what
    there is of a Hugging Face model: its config.json. Adapters are put on the model that they were trained on."""
    from baton.config.lora import LoraConfig
    from baton.config.trainable import TrainableConfig
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.hf_checkpoint import require_weights
    from services.trainer.megatron.hosted import HostedModel

    config = TrainableConfig(dtype=known["dtype"], device="cpu")
    if known["lora"].get("checkpoint") == "adapter" and (base := Path(known["source"])).is_dir():
        facts = {name: value for name, value in known["lora"].items() if name != "base"}
        config = config.model_copy(update={"lora": LoraConfig(enable_lora=True, **facts)})
        return Engine(config, layout, base, 1, head=known["head"], role=role)
    require_weights(path, role, known)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(known["config"]))
    if known["updates"] is None:
        return HostedModel(config, layout, directory, head=known["head"], role=role, load=path)
    return Engine(config, layout, directory, 1, head=known["head"], role=role, load=path)


def main() -> None:
    """Command line. Exit code 1, with the reason, if it cannot be done."""
    parser = argparse.ArgumentParser(description="Reads and writes checkpoints; see `baton ckpt`.")
    commands = parser.add_subparsers(required=True)
    importing = commands.add_parser("import-hf")
    importing.add_argument("model")
    importing.add_argument("target", type=Path)
    importing.add_argument("--role", default="ppo_policy")
    importing.set_defaults(run=import_hf)
    exporting = commands.add_parser("export-hf")
    exporting.add_argument("path", type=Path)
    exporting.add_argument("target", type=Path)
    exporting.add_argument("--role")
    exporting.add_argument("--model", type=Path)
    exporting.set_defaults(run=export_hf)
    resharding = commands.add_parser("reshard")
    resharding.add_argument("path", type=Path)
    resharding.add_argument("target", type=Path)
    resharding.add_argument("--tensor", type=int, required=True)
    resharding.add_argument("--pipeline", type=int, required=True)
    resharding.set_defaults(run=reshard)
    options = parser.parse_args()
    try:
        options.run(options)
    except BatonError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
