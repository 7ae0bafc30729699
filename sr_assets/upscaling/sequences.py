"""Frames one after the other: each by itself, or with the features of the frame before.

Where frames come from and go to is `videos.py` and `frame_folders.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import Upscaler
from sr_assets.pictures import Pixels
from sr_assets.upscaling.enlarging import Enlarger, upscale_samples
from sr_assets.upscaling.planning import Plan, plan_tiles

if TYPE_CHECKING:
    from sr_models.inference.video import FeatureNetwork, VideoState


@dataclass
class Sequence:
    """Enlarges the frames of one clip in their order."""

    enlarger: Enlarger
    temporal: bool
    """Blend the features of each frame with those of the one before; frames then run whole."""
    tile: int | None = None
    """Side of a tile with its halo (LR px); None chooses, as for pictures."""
    halo: int | None = None
    plan: Plan = field(init=False)
    _state: VideoState | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.temporal:
            demand_temporal(self.enlarger)
        self.plan = plan_tiles(self.enlarger.upscaler, self.tile, self.halo)

    def enlarge(self, frame: Pixels) -> Pixels:
        """The next frame: uint8 [h, w, 3] -> uint8 [scale h, scale w, 3].

        Raises:
            ValueError: the network gave values that are not finite.
            ExpertMemoryError: the frame, or with tiles the smallest tile, does not fit into memory.
        """
        if self.temporal:
            return self._after_the_last(frame)
        scale = self.enlarger.upscaler.scale
        sr = np.empty((frame.shape[0] * scale, frame.shape[1] * scale, 3), np.uint8)
        upscale_samples(self.enlarger, frame, sr, self.plan.cut)
        return sr

    def see(self, frame: Pixels) -> None:
        """Takes a frame for the one before the next; what came before it does not matter."""
        if self.temporal:
            self._state = None
            self._after_the_last(frame)

    def _after_the_last(self, frame: Pixels) -> Pixels:
        import torch

        from sr_models.experts.running import ExpertMemoryError, is_out_of_memory
        from sr_models.inference.streaming import samples_to_unit, unit_to_samples
        from sr_models.inference.video import upscale_frame

        upscaler = self.enlarger.upscaler
        network = cast("FeatureNetwork", upscaler.network)
        lr = samples_to_unit(frame, upscaler.device)
        try:
            with torch.inference_mode():
                sr, self._state = upscale_frame(network, lr, self._state)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not is_out_of_memory(error):
                raise
            raise ExpertMemoryError(
                f"a frame of {frame.shape[1]}x{frame.shape[0]} px does not fit into memory, and "
                "--temporal runs frames whole"
            ) from error
        return cast(Pixels, unit_to_samples(sr[0], np.dtype(np.uint8)))


def demand_temporal(enlarger: Enlarger) -> None:
    """Refuses --temporal where it cannot be done.

    Raises:
        StageError: the network has no features to hand over, or runs another way than torch's.
    """
    upscaler: Upscaler = enlarger.upscaler
    network = upscaler.network
    if not (callable(getattr(network, "features", None)) and hasattr(network, "reconstruct")):
        raise StageError(
            f"{upscaler.name} has no features that a frame could hand over to the next "
            "(ParagonSR2 has): leave --temporal out"
        )
    if enlarger.self_ensemble or enlarger.fp16:
        raise StageError("--temporal goes neither with --self-ensemble nor with --dtype fp16")
