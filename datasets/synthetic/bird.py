"""The bird: its colours, its shapes and the order in which they are painted (coordinates: `drawing.py`)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.config import SyntheticConfig
from datasets.synthetic.drawing import PARTS, Canvas, Pose, Uniform, hsv

BODY, HEAD, BEAK, WING, TAIL = range(1, len(PARTS) + 1)


def draw_birds(canvas: Canvas, pose: Pose, label: Tensor, draw: Uniform, options: SyntheticConfig) -> None:
    """Paint one bird per image. Class 1 [n] has a long thin beak and wing stripes, class 0 a short one and checks."""
    striped = label.bool().view(-1, 1, 1)
    x, y = pose.to_bird(canvas.x, canvas.y)
    hue = torch.where(draw(0, 1) < options.any_hue, draw(0, 1), draw(-0.10, 0.14))
    saturation, value = draw(0.35, 0.9), draw(0.55, 1)
    head = hsv(hue + draw(-0.05, 0.05), saturation * draw(0.4, 1), value * draw(0.7, 1.1))
    tail = hsv(hue + draw(-0.05, 0.05), saturation * draw(0.6, 1), value * draw(0.5, 0.9))
    # Painted from back to front. Every draw advances the one generator, so the order of the draws is part of the data.
    layers = [
        (_tail(x, y, draw), tail, TAIL),
        (_ellipse(x, y, 0.50, 0.37), hsv(hue, saturation, value), BODY),
        (_beak(x, y, striped, draw), hsv(draw(0.08, 0.15), draw(0.7, 1), draw(0.7, 1)), BEAK),
        (_disc(x - 0.50, y - 0.36, 0.25), head, HEAD),
        (_disc(x - 0.57, y - 0.42, 0.045), torch.full((len(label), 3, 1, 1), 0.05), HEAD),  # eye
        (*_wing(x, y, hue, saturation, striped, draw, options), WING),
    ]
    for distance, colour, part in layers:
        canvas.paint(distance * pose.scale, colour, part)


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y) - radius


def _ellipse(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    """Signed distance to first order: accurate near the outline, which is all that anti-aliasing needs."""
    k = torch.hypot(x / a, y / b)
    return k * (k - 1) / torch.hypot(x / a**2, y / b**2).clamp(min=1e-6)


def _polygon(x: Tensor, y: Tensor, corners: Sequence[tuple[float | Tensor, float | Tensor]]) -> Tensor:
    """Largest signed distance [n, H, W] to the edges of a convex polygon with clockwise corners (y up)."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        dx, dy = torch.as_tensor(x1 - x0), torch.as_tensor(y1 - y0)
        sides.append((dx * (y - y0) - dy * (x - x0)) / torch.hypot(dx, dy))
    result = sides[0]
    for side in sides[1:]:
        result = torch.maximum(result, side)
    return result


def _tail(x: Tensor, y: Tensor, draw: Uniform) -> Tensor:
    length, width = draw(0.85, 1), draw(0.20, 0.28)
    tail = _polygon(x, y, [(-0.30, -0.12), (-length, 0.06 - width), (-length, 0.06 + width), (-0.30, 0.14)])
    back, half = -length - 0.05, 0.75 * width
    # Half of the tails are forked: the notch is cut out of them.
    notch = _polygon(x, y, [(-0.62, 0.06), (back, 0.06 - half), (back, 0.06 + half)])
    return torch.where(draw(0, 1) < 0.5, torch.maximum(tail, -notch), tail)


def _beak(x: Tensor, y: Tensor, striped: Tensor, draw: Uniform) -> Tensor:
    length = torch.where(striped, draw(0.40, 0.50), draw(0.16, 0.22))
    half = torch.where(striped, 0.085, 0.15)
    return _polygon(x, y, [(0.62, 0.36 - half), (0.62, 0.36 + half), (0.70 + length, 0.33)])


def _wing(
    x: Tensor, y: Tensor, hue: Tensor, saturation: Tensor, striped: Tensor, draw: Uniform, options: SyntheticConfig
) -> tuple[Tensor, Tensor]:
    """Signed distance [n, H, W] and patterned colour [n, 3, H, W] of the wing."""
    # (along, across): coordinates on the wing, which is tilted by -0.25 rad.
    cos, sin = math.cos(-0.25), math.sin(-0.25)
    along, across = cos * (x + 0.08) + sin * (y - 0.03), cos * (y - 0.03) - sin * (x + 0.08)
    u, v, rate, turn = along / 0.36, across / 0.24, draw(2.3, 3.0), 2 * math.pi
    first, second = draw(0, turn), draw(0, turn)
    stripes = torch.sin(turn * 0.9 * rate * u + first)
    checks = 1.6 * torch.sin(turn * 0.75 * rate * u + first) * torch.sin(turn * 0.5 * rate * v + second)
    pattern = torch.sigmoid(6 * torch.where(striped, stripes, checks))
    light = _light_wing(hue, saturation, striped, draw, options)
    dark = hsv(hue, saturation, draw(0.10, 0.30))
    return _ellipse(along, across, 0.36, 0.24), torch.lerp(dark, light, pattern[:, None])


def _light_wing(hue: Tensor, saturation: Tensor, striped: Tensor, draw: Uniform, options: SyntheticConfig) -> Tensor:
    """Light colour of the wing pattern; yellow (class 0) or white (class 1) for the fraction `colour_cue` of birds."""
    cue = draw(0, 1) < options.colour_cue
    cue_saturation = torch.where(striped, draw(0, 0.12), draw(0.7, 0.95))
    return hsv(
        torch.where(cue, draw(0.12, 0.16), hue), torch.where(cue, cue_saturation, 0.35 * saturation), draw(0.85, 1)
    )
