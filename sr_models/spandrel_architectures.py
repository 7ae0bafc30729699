"""Names of the networks that are not in our registry but can be built: spandrel's and EDSR.

Building them is `networks.py`; this file imports nothing, so that a recipe can be checked at once.
"""

#: Every network of spandrel that enlarges RGB at a chosen scale by calling it with the picture, and
#: EDSR. Left out are AuraSR (x4 alone, a generator fed with noise), IPT (one fixed patch size, with
#: a forward pass for one patch on a 0..255 range), MMRealSR (gives its degradation beside the
#: picture), RealPLKSR (ours is), and what restores without enlarging, such as SAFMNBCIE and SCUNet.
NAMES = (
    "ATD", "CRAFT", "Compact", "DAT", "DCTLSA", "DITN", "DRCT", "EDSR", "ESRGAN", "FDAT", "GRL",
    "HAT", "MoESR", "MoSR", "OmniSR", "PLKSR", "RCAN", "RGT", "RealCUGAN", "SAFMN", "SPAN",
    "SeemoRe", "Swin2SR", "SwiftSRGAN", "SwinIR",
)  # fmt: skip
