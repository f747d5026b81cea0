"""Canvas, backgrounds and poses of the procedural birds: every shape is a signed distance on the pixel grid.

Shapes: n images of H x W pixels. Lengths in an image are in units of the image's (shorter) side, lengths on a bird in
units of the bird's size. Bird coordinates have the beak along +x and the back along +y; in the image, y points down.
Per-image parameters are tensors [n, 1, 1] that broadcast against the grid [n, H, W].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.config import SyntheticConfig

PARTS = ("body", "head", "beak", "wing", "tail")
"""Part k has the value k + 1 in a part map; 0 is background."""
KEY_POINTS = ((0.0, 0.0), (0.50, 0.36), (0.75, 0.35), (-0.08, 0.03), (-0.70, 0.06))
# Discs (x, y, radius) that contain the largest bird of either class. Positions are drawn with these and not with the
# bird's own beak, so that the position of a bird does not depend on its class.
EXTENT = ((-1.0, 0.34, 0.0), (-1.0, -0.22, 0.0), (1.20, 0.33, 0.0), (0.50, 0.36, 0.25), (0.0, 0.0, 0.40))


class Uniform:
    """Draws U(low, high) for n images at a time from one generator."""

    def __init__(self, generator: torch.Generator, n: int) -> None:
        self.generator, self.n = generator, n

    def __call__(self, low: float | Tensor, high: float | Tensor) -> Tensor:
        """A tensor [n, 1, 1] float32."""
        return low + (high - low) * torch.rand(self.n, 1, 1, generator=self.generator)


@dataclass(frozen=True)
class Canvas:
    """Pixel grid of n images, painted in place."""

    image: Tensor
    """[n, 3, H, W] float32 in [0, 1]."""
    parts: Tensor
    """[n, H, W] uint8: 0 background, k + 1 = part k."""
    x: Tensor
    """[W] pixel centres, image sides."""
    y: Tensor
    """[H, 1] pixel centres, image sides."""
    side: int
    """Length of the shorter image side, pixels."""

    def paint(self, distance: Tensor, colour: Tensor, part: int) -> None:
        """Paint `colour` [n, 3, 1 | H, 1 | W] where `distance` [n, H, W] (image sides) is negative, with soft edges."""
        cover = (0.5 - distance * self.side).clamp_(0, 1)
        self.image.lerp_(colour.expand_as(self.image), cover[:, None])
        self.parts[cover > 0.5] = part


def hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB [n, 3, 1, 1] of hue (any real number, period 1), saturation and value (clamped to [0, 1]), each [n, 1, 1]."""
    s, v = saturation.clamp(0, 1)[:, None], value.clamp(0, 1)[:, None]
    k = (torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1) + 6 * hue[:, None]) % 6
    return v - v * s * torch.minimum(k, 4 - k).clamp(0, 1)


def blank_canvas(n: int, size_hw: tuple[int, int]) -> Canvas:
    """A canvas of n black images."""
    height, width = size_hw
    side = min(size_hw)
    x, y = (torch.arange(width) + 0.5) / side, (torch.arange(height)[:, None] + 0.5) / side
    return Canvas(torch.zeros(n, 3, height, width), torch.zeros(n, height, width, dtype=torch.uint8), x, y, side)


def draw_background(canvas: Canvas, place: Tensor, draw: Uniform, options: SyntheticConfig) -> None:
    """Fill the canvas with water (place 1: horizontal waves) or forest (place 0: vertical trunks). place: [n] int64."""
    water = place.bool().view(-1, 1, 1)
    angle = draw(-options.tilt, options.tilt)
    along = angle.cos() * canvas.x + angle.sin() * canvas.y
    across = angle.cos() * canvas.y - angle.sin() * canvas.x
    texture = _texture(torch.where(water, across, along), torch.where(water, along, across), draw)
    overlap = 0.19 * (1 - options.hue_gap)
    hue = draw(torch.where(water, 0.47 - overlap, 0.28), torch.where(water, 0.66, 0.47 + overlap))
    saturation, value = draw(0.30, 0.75), draw(0.30, 0.75)
    dark = hsv(hue, saturation, value)
    light = hsv(hue + draw(-0.06, 0.06), saturation * draw(0.5, 1), value + draw(0.15, 0.35) * options.contrast)
    canvas.image.copy_(torch.lerp(dark, light, texture[:, None]))


def _texture(p: Tensor, q: Tensor, draw: Uniform) -> Tensor:
    """Wavy stripes, [n, H, W] in (0, 1): periodic in p, bent along q."""
    turn = 2 * math.pi
    total = torch.zeros_like(p)
    for _ in range(3):
        frequency, bend, wobble = draw(4, 11), draw(0.1, 0.5), draw(0.8, 2.5)
        bent = 2.5 * bend * torch.sin(turn * wobble * q + draw(0, turn))
        total += torch.sin(turn * frequency * p + draw(0, turn) + bent)
    return torch.sigmoid(1.6 * total)


@dataclass(frozen=True)
class Pose:
    """Poses of n birds; each field [n, 1, 1], lengths in image sides, the angle in radians."""

    scale: Tensor
    angle: Tensor
    mirror: Tensor
    """+1: the beak points right; -1: left."""
    x: Tensor
    y: Tensor

    def to_bird(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Image coordinates (image sides) to bird coordinates x and y, each [n, H, W]."""
        right, up = self.mirror * (x - self.x) / self.scale, (self.y - y) / self.scale
        cos, sin = self.angle.cos(), self.angle.sin()
        return cos * right + sin * up, cos * up - sin * right

    def to_image(self, points: Tensor) -> Tensor:
        """Points [P, 2] in bird coordinates to image coordinates [n, P, 2], image sides."""
        x, y = _turn(points, self.angle)
        right = self.x[..., 0] + (self.mirror * self.scale)[..., 0] * x
        return torch.stack([right, self.y[..., 0] - self.scale[..., 0] * y], dim=-1)


def _turn(points: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate points [P, 2] by `angle` [n, 1, 1]; returns x and y, each [n, P]."""
    cos, sin = angle[..., 0].cos(), angle[..., 0].sin()
    return cos * points[:, 0] - sin * points[:, 1], sin * points[:, 0] + cos * points[:, 1]


def draw_pose(canvas: Canvas, draw: Uniform) -> Pose:
    """Random poses that keep the whole bird inside the image."""
    scale, angle = draw(0.33, 0.44), draw(-0.45, 0.45)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    extent = torch.tensor(EXTENT)
    right, up = _turn(extent[:, :2], angle)
    # How far the turned bird reaches from its origin towards +x, -x, +y and -y, each [n, 1, 1].
    reach = [(sign * axis + extent[:, 2]).amax(1)[:, None, None] * scale for axis in (right, up) for sign in (1, -1)]
    ahead, behind, above, below = reach
    left = torch.where(mirror > 0, behind, ahead)
    width, height = canvas.image.shape[3] / canvas.side, canvas.image.shape[2] / canvas.side
    x = _between(left, width - (ahead + behind - left), draw)
    return Pose(scale, angle, mirror, x, _between(above, height - below, draw))


def _between(low: Tensor, high: Tensor, draw: Uniform) -> Tensor:
    """U(low, high), or the middle of the two if the bird is larger than the image (low > high)."""
    room = (high - low).clamp(min=0)
    return (low + high - room) / 2 + room * draw(0, 1)
