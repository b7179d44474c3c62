"""Pictures of environments, drawn with Pillow: uint8 `[height, width, 3]`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Color = tuple[int, ...]  # red, green, blue
PAPER, INK, GREY, DIM, NIGHT, WHITE = (
    (250, 250, 250),
    (30, 30, 30),
    (165, 165, 165),
    (62, 66, 78),
    (20, 21, 28),
    (245, 245, 245),
)
# Those that the colour-blind tell apart. Source: Okabe and Ito, "Color universal design", 2008.
ORANGE, SKY, GREEN, YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
BLUE, VERMILION, PURPLE = (0, 114, 178), (213, 94, 0), (204, 121, 167)
SUPERSAMPLED = 3  # Pillow draws hard edges
CELL = 24  # pixels

# By game: planes of its observation in the order they are painted, what moves last.
MINATAR: dict[str, Sequence[tuple[int, Color]]] = {
    "asterix": ((2, DIM), (3, YELLOW), (1, VERMILION), (0, SKY)),
    "breakout": ((2, DIM), (3, ORANGE), (0, SKY), (1, WHITE)),
    "freeway": (*((2 + speed, (92 - 13 * speed,) * 3) for speed in range(5)), (1, VERMILION), (0, YELLOW)),
    "seaquest": (
        *((3, DIM), (7, BLUE), (8, PURPLE), (9, PURPLE), (5, ORANGE), (6, VERMILION), (4, (255, 150, 140)), (2, WHITE)),
        *((1, GREEN), (0, YELLOW)),
    ),
    "space_invaders": ((1, GREEN), (5, VERMILION), (4, WHITE), (0, SKY)),
}
MINATAR_ACTIONS = ("noop", "left", "up", "right", "down", "fire")


class Canvas:
    """A picture in an environment's own coordinates: x to the right, y up.

    Args:
      size: width and height in pixels.
      corner: x and y of the lower left corner.
      scale: pixels of a unit.
      paper: the background.
    """

    def __init__(self, size: tuple[int, int], corner: Sequence[float] = (0, 0), scale: float = 1, paper: Color = PAPER):
        from PIL import Image, ImageDraw

        self._corner, self._scale = np.asarray(corner, float), scale * SUPERSAMPLED
        self._image = Image.new("RGB", (size[0] * SUPERSAMPLED, size[1] * SUPERSAMPLED), paper)
        self._draw = ImageDraw.Draw(self._image)

    def _pixels(self, points: Any) -> list[tuple[float, float]]:
        pixels = (np.asarray(points, float) - self._corner) * self._scale
        return [(float(x), self._image.height - float(y)) for x, y in pixels]

    def circle(self, center: Any, radius: float, color: Color) -> None:
        """A disc, `radius` in units."""
        (x, y), r = self._pixels([center])[0], float(radius) * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), color)

    def line(self, points: Any, color: Color, width: float) -> None:
        """Through points `[n, 2]`, with round ends; `width` in units."""
        pixels, width = self._pixels(points), float(width) * self._scale
        self._draw.line(pixels, color, max(1, round(width)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self._draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), color)

    def polygon(self, points: Any, color: Color) -> None:
        """The area between points `[n, 2]`."""
        self._draw.polygon(self._pixels(points), color)

    def box(self, corner: Any, size: Any, color: Color) -> None:
        """An upright rectangle from its lower left corner; both in units, `[2]`."""
        (x, y), (width, height) = corner, size
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], color)

    def text(self, center: Any, text: str, color: Color, size: float, anchor: str = "mm") -> None:
        """A line of text; `size` in units, `anchor` of Pillow ("lm": `center` is its left end)."""
        from PIL import ImageFont

        font = ImageFont.load_default(max(1.0, size * self._scale))
        self._draw.text(self._pixels([center])[0], text, color, font, anchor)

    def picture(self) -> np.ndarray:
        """What was drawn, uint8 `[height, width, 3]`."""
        return np.asarray(self._image.reduce(SUPERSAMPLED))


def cells(shape: Sequence[int], layers: Iterable[tuple[Any, Color]], paper: Color = NIGHT) -> np.ndarray:
    """A grid of coloured cells.

    Args:
      shape: rows H and columns W.
      layers: arrays `[H, W]`, and the colour of the cells where they are not 0; later ones cover earlier ones.
      paper: colour of the other cells.
    """
    colors = np.full((*shape, 3), paper, np.uint8)
    for layer, color in layers:
        colors[np.asarray(layer) != 0] = color
    picture = colors.repeat(CELL, axis=0).repeat(CELL, axis=1)
    for axis in (picture, picture.swapaxes(0, 1)):  # lines between the cells
        axis[::CELL] = axis[::CELL] // 4 * 3
    return picture


def minatar(game: str, obs: Any) -> np.ndarray:
    """A game of MinAtar from its observation `[10, 10, C]`.

    Source of the planes: Young and Tian, 2019, arXiv:1903.03176.
    """
    obs = np.asarray(obs)
    return cells(obs.shape[:2], ((obs[..., plane], color) for plane, color in MINATAR[game]))
