"""What Baton's engine calls in vLLM's worker processes, beside vLLM's own methods."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from services.rollout import vllm_adapters
from services.rollout.vllm_devices import NamedDevice

log = logging.getLogger(__name__)


class BatonWorker(NamedDevice):
    """Mixed into vLLM's worker class (`worker_extension_cls`).

    Nothing here raises: vLLM stops collecting the workers' answers at the first failure, and would take what the others have
    answered for their answers to its next call. What fails returns {"error": cause}.
    """

    def baton_receive_weights(
        self, group: dict[str, Any] | None, load: int, timeout_s: float, verify: bool
    ) -> dict[str, Any]:  # fmt: skip
        """One whole update, number `load`; joins `group` first, if one is given. Returns what came and how: see
        `Reception.take`; and the path."""

        def receive() -> None:
            self._baton_drop(None)  # they were trained on other weights
            if group is not None:
                self.init_weight_transfer_engine(group)
            self.start_weight_update()
            self.update_weights({"load": load, "timeout_s": timeout_s, "verify": verify})
            self.finish_weight_update()

        try:
            return self._baton_report(receive)
        finally:
            self._weight_update_active = False  # else vLLM would refuse the next one

    def baton_stage_weights(self, group: dict[str, Any] | None, timeout_s: float, verify: bool) -> None:
        """Begins to receive a whole update into memory of its own, while the engine generates; see `baton_staged`."""

        def stage() -> None:
            if group is not None:
                self.init_weight_transfer_engine(group)
            self.weight_transfer_engine.stage(timeout_s, verify=verify)

        def run() -> None:
            self._baton_staged = self._baton_report(stage)

        self._baton_staged: dict[str, Any] | None = None
        threading.Thread(target=run, name="stage-weights", daemon=True).start()

    def baton_staged(self) -> dict[str, Any] | None:
        """What was staged; None while it arrives."""
        return self._baton_staged

    def baton_load_staged(self, load: int, verify: bool) -> dict[str, Any]:
        """Loads it as update number `load`."""

        def put() -> None:
            self._baton_drop(None)
            self.weight_transfer_engine.load_staged(load, verify=verify)

        return self._baton_report(put)

    def baton_load_adapter(self, load: int, multiplier: float) -> dict[str, Any]:
        """Registers what was staged as the adapter of update number `load`. The report has what of the model it is of, by
        module, as `adapted`."""
        manager = self.model_runner.lora_manager
        return self._baton_report(lambda: self.weight_transfer_engine.load_adapter(manager, load, multiplier))

    def baton_drop_adapters(self, loads: list[int]) -> None:
        """Frees them. No request under way or waiting may be for one of them."""
        self._baton_drop(loads)

    def baton_adapted_modules(self) -> list[str]:
        """What of this worker's part of the model adapters can be of."""
        return sorted(vllm_adapters.adapted_modules(self.model_runner.lora_manager))

    def _baton_drop(self, loads: list[int] | None) -> None:
        if getattr(self.model_runner, "lora_manager", None) is not None:
            vllm_adapters.drop(self.model_runner.lora_manager, loads)

    def _baton_report(self, update: Callable[[], None]) -> dict[str, Any]:
        try:
            update()
        except Exception as error:
            log.exception("an update broke off")
            return {"error": f"{type(error).__name__}: {error}"}
        return self.weight_transfer_engine.report

    def baton_prepare_stage(self) -> None:
        """Makes the buffers for what comes from the pipeline stage before, which vLLM on a CPU makes only as it compiles."""
        runner = self.model_runner
        if self.device.type == "cpu" and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
