"""What the optimizers with two decay rates share: beta1 and beta2, each checked when it is assigned."""

from __future__ import annotations

from typing import Any

from xnn.errors import OptionError
from xnn.optimizers.optimizer import Optimizer
from xnn.options import check_real, checked, shown

__all__ = ["OfMoments"]


class OfMoments(Optimizer):
    """Base class of Adam, AdamW, Nadam and Lion, whose moving averages have two decay rates in [0, 1)."""

    beta1: float = checked(check_real, 0.0, 1.0)
    beta2: float = checked(check_real, 0.0, 1.0)

    @property
    def betas(self) -> tuple[float, float]:
        """beta1 and beta2. Raises OptionError when anything but two numbers in [0, 1) is assigned."""
        return self.beta1, self.beta2

    @betas.setter
    def betas(self, betas: Any) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise OptionError(f"betas must be two numbers in [0, 1), as in (0.9, 0.999), got {shown(betas)}")
        self.beta1, self.beta2 = (
            check_real(f"betas[{place}]", beta, 0.0, 1.0) for place, beta in enumerate(betas)
        )
