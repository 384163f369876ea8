"""LoRA on Megatron-Core: adapters in the layers of a model, their files, and what is synchronised and saved of them."""

from services.trainer.megatron.lora.convert import convert_layer_to_lora
from services.trainer.megatron.lora.factors import adapter_regions

__all__ = ["adapter_regions", "convert_layer_to_lora"]
