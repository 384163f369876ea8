"""Log-probabilities of prompts: what a flow that asks for them finds in its groups."""

import numpy as np

from baton.clients import RolloutClient
from baton.clients.rollout import SamplingParams
from baton.engine import PromptItem
from baton.testing import FakeRollout, serve
from services.coordinator.fleet import Fleet
from services.coordinator.rollouts import Rollouts


class Measured(FakeRollout):
    """Gives two columns for each prompt of a request that asks for them."""

    async def Generate(self, request, context):
        async for answer in super().Generate(request, context):
            for prompt in request.prompts if request.sampling.HasField("prompt_logprobs") else ():
                rows = {"token_ids": np.int32([[5, 6]]).tobytes(), "logprobs": np.float32([[-1, -2]]).tobytes()}
                answer.prompt_logprobs.add(group_id=prompt.group_id, columns=2, **rows)
            yield answer


async def test_a_flow_gets_the_log_probabilities_of_a_prompt_if_they_were_asked_for():
    prompt = PromptItem("g0", [{"role": "user", "content": "q"}], "q")
    async with serve(Measured()) as replica:
        fleet = Fleet([RolloutClient(replica.address, timeout_s=60)], return_s=5)
        rollouts = Rollouts(fleet, batch_size=1, group_size=2, timeout_s=10, max_attempts=3, ranking=False)
        for wanted in (1, None):
            sampling = SamplingParams(prompt_logprobs=wanted)
            [group] = [group async for group in rollouts.generate([prompt], sampling, episode_id=0, published={0: ""})]
            if wanted is None:
                assert group.prompt_logprobs is None
            else:
                assert group.prompt_logprobs.token_ids.tolist() == [[5, 6]]
                assert group.prompt_logprobs.logprobs.tolist() == [[-1, -2]]
