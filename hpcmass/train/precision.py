"""Mixed precision: the type that the model computes in, and fp16's loss scaling."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
WIRE_TYPES = {"none": None, **_TYPES}
"""`train.compression` by name: the type in which gradients travel between ranks."""

# Halved from 65536 without a finite gradient in between: no scale will help.
_SMALLEST_SCALE = 2.0**-10


class Precision:
    """How one rank computes a step. The parameters themselves stay as they are (float32).

    fp16 has gradients scaled up, lest they vanish; a scale under which one of them overflows is halved and the
    step skipped, on all ranks alike, since the sum over the ranks spreads what is not finite.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Prepare.

        Args:
            name: `fp32`, `bf16` or `fp16`.
            device: Where the model computes.
        """
        self._type, self._device = _TYPES.get(name), device
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        if self._scaler is not None:
            # It makes its scale at the first loss, and a rank may have no sample in its first step.
            self._scaler.scale(torch.zeros((), device=device))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What the forward pass and the loss run in."""
        return torch.autocast(
            self._device.type, dtype=self._type or torch.bfloat16, enabled=self._type is not None
        )

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], clip_norm: float | None
    ) -> bool:
        """Bring the gradients back to scale, clip them by their global L2 norm, and step.

        Returns:
            False where the step was skipped, for a gradient was not finite.
        """
        scaler = self._scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        if scaler is None:
            optimizer.step()
            return True
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale() >= before

    @property
    def hopeless(self) -> bool:
        """Whether the scale has been halved so often that the gradients themselves must be at fault."""
        return self._scaler is not None and self._scaler.get_scale() < _SMALLEST_SCALE

    @property
    def scale(self) -> float | None:
        """The loss scale; None where there is none."""
        return None if self._scaler is None else self._scaler.get_scale()

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint holds of it, in numbers."""
        return None if self._scaler is None else self._scaler.state_dict()

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from a checkpoint."""
        if self._scaler is not None and state is not None:
            self._scaler.load_state_dict(state)


@contextlib.contextmanager
def quiet_schedule(stepped: bool) -> Any:
    """No warning of torch's that a schedule stepped though the optimizer did not: a skipped step counts."""
    with warnings.catch_warnings():
        if not stepped:
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
        yield
