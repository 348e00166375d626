# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""How to train: what a run's result depends on, beside its photos."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import CommandError

# A model of 2.5 M parameters in all, to learn from scratch on a CPU.
TINY = "tiny"
FLIPS = ("horizontal", "both", "none")


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        model: A name in ``builders.MODELS``, or "tiny".
        weights: What ``load_checkpoint`` takes; None for random ones.
        vit_features: As for ``ViTAdapter``.
        norm: As for ``ViTAdapter``; "GN" takes batches of any size.
        size: (H, W) that photos are resized to fit into, in proportion.
        has_masks: Whether the detector is a Mask R-CNN, which learns masks too.
        has_frozen_vit: Whether the ViT stays as it is; None for what the model's preset says.
        epochs: Passes over the training photos.
        batch: Photos in a step, of all processes together.
        lr: Of AdamW at its peak, outside the ViT: it rises for a tenth of the steps, 1000 at most,
            and falls as a cosine.
        layer_decay: Of the rate, from one layer of the ViT to the one before it.
        weight_decay: Of AdamW.
        ema: What the average of the weights keeps of itself in a step; less in the first steps.
        jitter: By how much photos are larger or smaller than ``size``, at random: 0.2 is a fifth.
        flip: "horizontal", "both" or "none": along which axes photos are mirrored at random.
        is_amp: Whether products are in bfloat16.
        fixes_boxes: Whether boxes are cut at the photo's edge, and left out where nothing is left.
        seed: Of weights, order and variation of the photos.
    """

    model: str = "s"
    weights: str | None = None
    vit_features: str = "last"
    norm: str = "GN"
    size: tuple[int, int] = (640, 640)
    has_masks: bool = False
    has_frozen_vit: bool | None = None
    epochs: int = 12
    batch: int = 4
    lr: float = 1e-4
    layer_decay: float = 0.7
    weight_decay: float = 0.05
    ema: float = 0.999
    jitter: float = 0.2
    flip: str = "horizontal"
    is_amp: bool = False
    fixes_boxes: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise CommandError for what cannot be trained with."""
        for name in ("epochs", "batch", "lr"):
            if not getattr(self, name) > 0:
                raise CommandError(f"{name} must be positive, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for a file."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Settings":
        """Return the settings that a file has."""
        return cls(**{**stored, "size": tuple(stored["size"])})

    def differences(self, other: "Settings") -> str:
        """Return which settings of ``other`` are different, and how, or ""."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ", ".join(f"{name} {one} and not {two}" for name, one, two in pairs if one != two)
