"""Ready-made degradation processes by name.

`bicubic`, the convention that benchmarks are measured by, is `bicubic.py` and draws nothing.
"""

from __future__ import annotations

from sr_models.degradations.steps import Blur, Jpeg, Noise, Process, Resize, Shuffle, Sinc

#: Two passes of blur, resize, noise and JPEG, the second with a sinc filter before or after its
#: JPEG (Real-ESRGAN, arXiv:2107.10833, section 3; ranges of distillSR).
REALWORLD = Process(
    steps=(
        Blur(probability=0.8),
        Resize(factor=(0.5, 1.0)),
        Noise(probability=0.7),
        Jpeg(quality=(75, 95)),
        Blur(probability=0.7),
        Resize(),
        Noise(probability=0.5),
        Shuffle(steps=(Sinc(probability=0.6), Jpeg(quality=(30, 85)))),
    )
)

#: One mild pass: the softness of a lens, grain of film, and a careful JPEG.
LIGHT = Process(
    steps=(
        Blur(
            probability=0.6,
            kernels=("isotropic", "anisotropic"),
            size=(7, 13),
            isotropic_sigma=(0.3, 1.4),
            anisotropic_sigma=(0.3, 1.8),
        ),
        Resize(methods=("area",)),
        Noise(probability=0.6, kinds=("gaussian",), sigma=(0.003, 0.02), grey=0.6),
        Jpeg(probability=0.5, quality=(85, 98)),
    )
)

PRESETS = {"realworld": REALWORLD, "light": LIGHT}
