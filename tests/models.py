"""Small random models, made on the spot, with a tokenizer that knows some words."""

from pathlib import Path

VOCABULARY = 512


def make_model(
    directory: Path, family: str = "qwen3", *, tied: bool = True, layers: int = 4, positions: int = 256,
    labels: int = 0, vocabulary: int = VOCABULARY, seed: int = 0, **sizes: int,
) -> Path:  # fmt: skip
    """Writes a random decoder whose heads and layers divide by two; with `labels`, a classifier. Takes about a second.
    `sizes` are of its config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": vocabulary, "max_position_embeddings": positions,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": tied,
    } | sizes  # fmt: skip
    if labels:
        sizes["num_labels"] = labels
    torch.manual_seed(seed)
    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    model = kind.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # norms off one, biases off zero, logits off flat
    model.save_pretrained(directory)
    return make_tokenizer(directory, [f"w{number}" for number in range(vocabulary - 3)])


def make_tokenizer(directory: Path, words: list[str]) -> Path:
    """Writes a tokenizer of these words, which get the ids from 3 on; 0 to 2 are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(directory)
    return directory
