"""The seven-phase frequency-guided fusion of frozen experts, put together from its phases.

Each phase is a file of its own; training and caches are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sr_models.fusion.collaboration import Collaboration
from sr_models.fusion.experts import check_features, check_names, check_pictures, expert_mean
from sr_models.fusion.frequency import BANDS, TIERS, FrequencyBands
from sr_models.fusion.guidance import Guidance
from sr_models.fusion.hierarchy import Hierarchy
from sr_models.fusion.refinement import EdgeEnhancement, Refinement
from sr_models.fusion.selection import Selection


@dataclass(frozen=True)
class FusionShape:
    """Widths and switches of a fusion; the defaults have 1.2 M parameters with four experts."""

    frequency: bool = True  # phase 2: nine bands of LR
    cross_band: bool = True  # phase 3: attention across bands and over 21 pixels
    collaboration: bool = True  # phase 4: of the experts that have features
    hierarchy: bool = True  # phase 5: weights at three resolutions, routing
    selection: bool = True  # phase 6: experts by difficulty
    refinement: bool = True  # phase 7: deep refinement, global residual
    edges: bool = True  # phase 7: Laplacian pyramid
    wavelet: str = "haar"
    guidance_width: int = 64
    common_width: int = 128  # of the features of all experts
    width: int = 128  # of the refinement
    depth: int = 6  # convolutions of the refinement

    def __post_init__(self) -> None:
        for name, least, step in (
            ("guidance_width", 8, 8),
            ("common_width", 8, 8),
            ("width", 8, 1),
            ("depth", 2, 1),
        ):
            value = getattr(self, name)
            if value < least or value % step:
                multiple = f", a multiple of {step}" if step > 1 else ""
                raise ValueError(f"{name} is {value}: give at least {least}{multiple}")


class FusionNetwork(nn.Module):
    """LR and the experts' pictures to one picture; a fresh network gives the experts' mean.

    Every branch that adds starts at zero, so that the first output is the plain mean to within
    rounding (1e-6), and nothing is clamped. Whole-image statistics enter through the Fourier rings,
    the DCT borders and the band weights: a tile gives nearly, not exactly, what the image gives.

    Args:
        experts: names, at least one, all different.
        scale: upscaling factor.
        features: name -> channels of the features of those experts that have some.
        shape: widths and switches.

    Raises:
        ValueError: a name or the wavelet is unknown, or a width is out of range.
    """

    #: LR pixels around a tile beyond which its pixels hardly change.
    halo = 32
    #: Tiles start at multiples of it, so that DCT blocks lie as they lie in the whole image.
    grid = 8

    def __init__(
        self,
        experts: Sequence[str],
        scale: int,
        features: Mapping[str, int] | None = None,
        shape: FusionShape | None = None,
    ) -> None:
        super().__init__()
        self.experts = check_names(experts)
        if scale < 1:
            raise ValueError(f"scale is {scale}: give at least 1")
        shape = shape or FusionShape()
        unknown = sorted(set(features or {}) - set(self.experts))
        if unknown:
            raise ValueError(f"features of {unknown}, which are not among experts {self.experts}")
        self.scale, self.shape = scale, shape
        self.features = (
            {e: features[e] for e in self.experts if e in features}
            if features and shape.collaboration
            else {}
        )
        guidance = shape.guidance_width
        guided = shape.hierarchy or shape.refinement  # who else would look at guidance
        self.frequency = FrequencyBands(shape.wavelet) if shape.frequency and guided else None
        bands, tiers = (BANDS, 3 * len(TIERS)) if shape.frequency else (0, 0)
        self.guidance = Guidance(bands, tiers, guidance, shape.cross_band) if guided else None
        self.collaboration = (
            Collaboration(self.features, scale, shape.common_width) if self.features else None
        )
        consensus = shape.common_width if self.features else 0
        self.hierarchy = (
            Hierarchy(len(self.experts), scale, guidance, consensus) if shape.hierarchy else None
        )
        several = len(self.experts) > 1  # one expert leaves nothing to select
        self.selection = (
            Selection(len(self.experts), scale) if shape.selection and several else None
        )
        context = guidance + consensus + (self.hierarchy.width if self.hierarchy else 0)
        self.refinement = (
            Refinement(scale, context, shape.width, shape.depth) if shape.refinement else None
        )
        self.edges = EdgeEnhancement(scale) if shape.edges else None

    def forward(
        self,
        lr: Tensor,
        sr: Mapping[str, Tensor],
        features: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Fuses the experts' pictures.

        Args:
            lr: [B, 3, h, w] in [0, 1]; any size.
            sr: expert name -> its SR [B, 3, scale h, scale w], about [0, 1], not clamped; the
                order of the mapping does not matter.
            features: name -> [B, C, h, w] of the experts that have some; others are ignored.

        Returns:
            [B, 3, scale h, scale w], not clamped.

        Raises:
            ValueError: names are missing or unknown, or a tensor has another size.
        """
        check_pictures(lr, sr, self.experts, self.scale)
        check_features(lr, features or {}, self.features)
        consensus = None
        if self.collaboration is not None:
            consensus, factors = self.collaboration(features or {})
            sr = {name: picture * factors.get(name, 1) for name, picture in sr.items()}
        mean = fused = expert_mean(sr, self.experts)
        deviations = torch.stack([sr[name] - mean for name in self.experts], 1)
        context = [] if consensus is None else [consensus]
        if self.guidance is not None:
            bands, tiers = self.frequency(lr) if self.frequency is not None else (None, None)
            guidance = self.guidance(lr, bands, tiers)
            context.append(guidance)
        if self.hierarchy is not None:
            fused, seen = self.hierarchy(mean, deviations, guidance, consensus)
            context.append(seen)
        if self.selection is not None:
            fused = self.selection(lr, fused, mean, deviations)
        if self.refinement is not None:
            fused = self.refinement(lr, fused, torch.cat(context, 1))
        return fused if self.edges is None else self.edges(fused)

    def phase_parameters(self) -> dict[str, int]:
        """Trainable parameters of each phase that is switched on; the names tell its number."""
        phases = {
            "2 frequency": self.frequency,
            "3 guidance": self.guidance,
            "4 collaboration": self.collaboration,
            "5 hierarchy": self.hierarchy,
            "6 selection": self.selection,
            "7 refinement": self.refinement,
            "7 edges": self.edges,
        }
        return {
            name: sum(p.numel() for p in phase.parameters() if p.requires_grad)
            for name, phase in phases.items()
            if phase is not None
        }
