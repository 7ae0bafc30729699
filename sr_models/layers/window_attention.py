"""Self-attention inside square windows of a feature map, every other block with shifted windows.

The residual sum and the norm before it belong to the block; there is no position bias.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

Mode = Literal["sdpa", "flex"]


class WindowAttention(nn.Module):
    """Multi-head attention among the pixels of one window (Liu et al. 2021, Swin, without bias).

    Masked windows cut the plane at `shift`, `shift` + `window`, ... and end where the map ends: a
    window at a border is smaller, nothing is padded or wrapped that a pixel could see. Windows that
    are not masked are those of released ParagonSR2 weights: zeros fill the map up to whole windows
    at its right and bottom and take part, and a shift rolls the far border into the near one.

    Args:
        channels: of the map; a multiple of `heads`.
        heads: the channels are shared out among.
        window: side of a window (px).
        shift: where the first cut lies (px), 0 <= shift < window.
        masked: as above.
        mode: "sdpa" uses torch's scaled_dot_product_attention. "flex" uses flex_attention, whose
            worth shows when the network is compiled on a GPU; where it cannot run, in exports and
            for gradients on a CPU, "sdpa" stands in. The weights and, within rounding, the results
            are the same.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 4,
        window: int = 16,
        shift: int = 0,
        masked: bool = True,
        mode: Mode = "sdpa",
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels {channels} must be a multiple of heads {heads}")
        if window < 1 or not 0 <= shift < window:
            raise ValueError(f"window {window} must be at least 1 and shift {shift} less than it")
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} is not one of {', '.join(get_args(Mode))}")
        self.heads, self.window, self.shift = heads, window, shift
        self.masked, self.mode = masked, mode
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape; any h, w >= 1."""
        batch, channels, height, width = x.shape
        side, tokens = self.window, self.window**2
        # A masked first cut at `shift` is a first window that begins above and left of the map.
        before = -self.shift % side if self.masked else 0
        rolled = 0 if self.masked else self.shift
        rows = (before + height + side - 1) // side
        columns = (before + width + side - 1) // side
        tall, wide = rows * side, columns * side
        x = F.pad(
            x.permute(0, 2, 3, 1),
            (0, 0, before, wide - width - before, before, tall - height - before),
        )
        x = torch.roll(x, (-rolled, -rolled), (1, 2)) if rolled else x
        # An exported graph has to hold for every size without a look at it: a spare window keeps it
        # true that there never is just one, and look-ups stand for views that depend on sizes.
        spare = int(torch.compiler.is_exporting())
        x = F.pad(x, (0, 0, 0, spare * side, 0, spare * side)) if spare else x
        rows, columns = rows + spare, columns + spare
        if spare:
            x = x[:, _places(rows, side, x.device)][:, :, :, _places(columns, side, x.device)]
        else:
            x = x.reshape(batch, rows, side, columns, side, channels)
        x = x.transpose(2, 3)
        x = x.reshape(batch * rows * columns, tokens, channels)

        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        inside = None
        if self.masked:
            lines = _inside(_places(rows, side, x.device) - before, height, spare)
            across = _inside(_places(columns, side, x.device) - before, width, spare)
            inside = lines[:, None, :, None] & across[:, None]
            inside = inside.expand(batch, -1, -1, -1, -1).reshape(-1, 1, 1, tokens)
        x = self.proj(self._attend(q, k, v, inside).transpose(1, 2).flatten(2))

        x = x.reshape(batch, rows, columns, side, side, channels).transpose(2, 3)
        x = x.reshape(batch, rows * side, columns * side, channels)
        if rolled:
            x = torch.roll(x[:, :tall, :wide], (rolled, rolled), (1, 2))
        if spare:
            x = x.index_select(2, torch.arange(before, before + width, device=x.device))
            x = x.index_select(1, torch.arange(before, before + height, device=x.device))
        else:
            x = x[:, before : before + height, before : before + width]
        return x.permute(0, 3, 1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, inside: Tensor | None) -> Tensor:
        """[N, heads, tokens, d]; `inside` [N, 1, 1, tokens] says which keys may be seen.

        No window but a spare one lies wholly outside the map, so every query sees a key.
        """
        in_torch_only = torch.compiler.is_exporting() or (
            q.device.type == "cpu" and q.requires_grad
        )
        if self.mode == "sdpa" or in_torch_only:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=inside)
        seen = None if inside is None else inside[:, 0, 0]

        def hide(score: Tensor, n: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert seen is not None
            return torch.where(seen[n, key], score, float("-inf"))

        attended = flex_attention(q, k, v, score_mod=None if seen is None else hide)
        assert isinstance(attended, Tensor)  # it is a tuple only when more is asked for
        return attended


def _places(count: int, side: int, device: torch.device) -> Tensor:
    """int64 [count, side]: the places of a line, window by window."""
    starts = torch.arange(count, device=device) * side
    return starts[:, None] + torch.arange(side, device=device)


def _inside(place: Tensor, length: int, spare: int) -> Tensor:
    """bool: which places of windows [count, side] belong to the map; a spare window sees itself."""
    inside = (place >= 0) & (place < length)
    return inside | ~inside.any(1, keepdim=True) if spare else inside
