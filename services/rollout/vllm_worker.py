"""What Baton's engine calls in vLLM's worker processes, beside vLLM's own methods."""

import logging
from typing import Any

log = logging.getLogger(__name__)


class BatonWorker:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    def baton_receive_weights(self, group: dict[str, Any] | None, load: int) -> dict[str, Any]:
        """One whole update, number `load`; joins `group` first, if one is given. Returns digest, bytes and seconds per
        phase, or {"error": cause}.

        It never raises: vLLM stops collecting the workers' answers at the first failure, and would take what the others have
        answered for their answers to its next call.
        """
        try:
            if group is not None:
                self.init_weight_transfer_engine(group)
            self.start_weight_update()
            self.update_weights({"load": load})
            self.finish_weight_update()
        except Exception as error:
            log.exception("an update broke off")
            return {"error": f"{type(error).__name__}: {error}"}
        finally:
            self._weight_update_active = False  # else vLLM would refuse the next one
        return self.weight_transfer_engine.report

    def baton_prepare_stage(self) -> None:
        """Makes the buffers for what comes from the pipeline stage before, which vLLM on a CPU makes only as it compiles."""
        runner = self.model_runner
        if self.device.type == "cpu" and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
