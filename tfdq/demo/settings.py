"""What the demo does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tfdq.experiments.settings import RunSettings

# The weight was chosen on a part of the training digits: python -m benchmarks.demo_beta.
DEFAULTS = {"penalty.beta": 0.03}
RUN = RunSettings().changed(DEFAULTS)


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        out: folder that the results go to.
        run: of the quantized forms; each network is trained alike, the float model once, then each
            form of it again.
        epsilons: strengths of the attacks, in 1/255; the middle one is the table's.
        sweep: activation bits of the accuracy-against-bits plot.
        seed: of everything.
    """

    out: Path = Path("runs/demo")
    run: RunSettings = RUN
    epsilons: tuple[int, ...] = (8, 16, 32, 48, 64)
    sweep: tuple[int, ...] = (1, 2, 3, 4, 5)
    seed: int = 0

    @property
    def epsilon(self) -> float:
        """The strength that the table shows, in input units."""
        return self.epsilons[len(self.epsilons) // 2] / 255
