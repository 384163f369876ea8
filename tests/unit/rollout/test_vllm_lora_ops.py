"""Adapters by adapter give what vLLM's own operations on a CPU give token by token."""

import pytest
import torch

from services.rollout import vllm_lora_ops

TOKENS, INPUTS, RANK, OUTPUTS = 7, 24, 4, 10
SLOTS = {"one": [1] * TOKENS, "two": [0, 1, 1, 0, 1, 0, 0]}


@pytest.fixture(scope="module")
def own():
    """vLLM's, before they are replaced in this process."""
    from vllm.lora.ops.torch_ops import lora_ops

    return {name: getattr(lora_ops, name) for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")}


def drawn(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("slots", SLOTS)
def test_every_token_goes_through_its_own_adapter(own, slots, dtype):
    index = torch.tensor(SLOTS[slots])
    near = 0.02 if dtype is torch.bfloat16 else 1e-5  # added before it is rounded, or after
    inputs = drawn(TOKENS, INPUTS, dtype=dtype)
    a, b = drawn(2, 1, RANK, INPUTS, dtype=dtype), drawn(2, 1, OUTPUTS, RANK, dtype=dtype)
    low, expected_low = torch.ones(TOKENS, RANK), torch.ones(TOKENS, RANK)
    vllm_lora_ops.bgmv_shrink(inputs, a, low, index, 0.5)
    own["bgmv_shrink"](inputs, a, expected_low, index, 0.5)
    torch.testing.assert_close(low, expected_low)
    for add in (True, False):
        output, expected = drawn(TOKENS, OUTPUTS + 2, dtype=dtype), drawn(TOKENS, OUTPUTS + 2, dtype=dtype)
        vllm_lora_ops.bgmv_expand(low, b, output, index, add)
        own["bgmv_expand"](low, b, expected, index, add)
        torch.testing.assert_close(output, expected, atol=near, rtol=near)
        output, expected = drawn(TOKENS, OUTPUTS + 5, dtype=dtype), drawn(TOKENS, OUTPUTS + 5, dtype=dtype)
        vllm_lora_ops.bgmv_expand_slice(low, b, output, index, 3, OUTPUTS, add)
        own["bgmv_expand_slice"](low, b, expected, index, 3, OUTPUTS, add)
        torch.testing.assert_close(output, expected, atol=near, rtol=near)


def test_a_token_without_an_adapter_gets_nothing_of_any(own):
    index = torch.tensor([-1, 0, -1, 1, -1, -1, 0])
    low, output = torch.ones(TOKENS, RANK), drawn(TOKENS, OUTPUTS)
    before = output.clone()
    vllm_lora_ops.bgmv_shrink(drawn(TOKENS, INPUTS), drawn(2, 1, RANK, INPUTS), low, index)
    vllm_lora_ops.bgmv_expand(low, drawn(2, 1, OUTPUTS, RANK), output, index)
    assert not low[index < 0].any()
    assert torch.equal(output[index < 0], before[index < 0])
    assert not torch.isclose(output[index >= 0], before[index >= 0]).all(dim=1).any()
