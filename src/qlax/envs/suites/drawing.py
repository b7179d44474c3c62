"""Drawing of environments with Pillow; pictures are uint8 `[height, width, 3]`."""

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
# Colours that colour-blind people can distinguish. Source: Okabe and Ito, "Color universal design", 2008.
ORANGE, SKY, GREEN, YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
BLUE, VERMILION, PURPLE = (0, 114, 178), (213, 94, 0), (204, 121, 167)
SUPERSAMPLED = 3  # factor by which pictures are drawn larger and then reduced, as Pillow draws hard edges
CELL = 24  # pixels per side of a cell

# Planes of each game's observation with their colours, in the order of painting: moving objects come last, on top.
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
    """Picture drawn in an environment's own coordinates, with x to the right and y up.

    Args:
      size: Width and height in pixels.
      corner: Coordinates x and y of the lower left corner.
      scale: Pixels per unit of the coordinates.
      paper: Colour of the background.
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
        """Draw a disc; `radius` in units of the coordinates."""
        (x, y), r = self._pixels([center])[0], float(radius) * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), color)

    def line(self, points: Any, color: Color, width: float) -> None:
        """Draw a line through points `[n, 2]`, with round ends; `width` in units of the coordinates."""
        pixels, width = self._pixels(points), float(width) * self._scale
        self._draw.line(pixels, color, max(1, round(width)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self._draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), color)

    def polygon(self, points: Any, color: Color) -> None:
        """Fill the polygon with corners `[n, 2]`."""
        self._draw.polygon(self._pixels(points), color)

    def box(self, corner: Any, size: Any, color: Color) -> None:
        """Fill a rectangle, given its lower left corner and its size (width, height), both `[2]`."""
        (x, y), (width, height) = corner, size
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], color)

    def text(self, center: Any, text: str, color: Color, size: float, anchor: str = "mm") -> None:
        """Draw a line of text.

        Args:
          center: Coordinates `[2]` of the text's anchor.
          text: The text.
          color: Colour of the text.
          size: Size of the font in units of the coordinates.
          anchor: Anchor in Pillow's notation: "mm" for the middle, "lm" for the left end.
        """
        from PIL import ImageFont

        font = ImageFont.load_default(max(1.0, size * self._scale))
        self._draw.text(self._pixels([center])[0], text, color, font, anchor)

    def picture(self) -> np.ndarray:
        """Return the finished picture, uint8 `[height, width, 3]`."""
        return np.asarray(self._image.reduce(SUPERSAMPLED))


def cells(shape: Sequence[int], layers: Iterable[tuple[Any, Color]], paper: Color = NIGHT) -> np.ndarray:
    """Draw a grid of coloured cells.

    Args:
      shape: Number of rows H and of columns W.
      layers: Pairs of an array `[H, W]` and the colour of the cells where the array is not 0; later pairs are painted
        over earlier ones.
      paper: Colour of the other cells.
    """
    colors = np.full((*shape, 3), paper, np.uint8)
    for layer, color in layers:
        colors[np.asarray(layer) != 0] = color
    picture = colors.repeat(CELL, axis=0).repeat(CELL, axis=1)
    for axis in (picture, picture.swapaxes(0, 1)):  # darken the lines between the cells
        axis[::CELL] = axis[::CELL] // 4 * 3
    return picture


def minatar(game: str, obs: Any) -> np.ndarray:
    """Draw a game of MinAtar from its observation `[10, 10, C]`.

    Source of the planes: Young and Tian, 2019, arXiv:1903.03176.
    """
    obs = np.asarray(obs)
    return cells(obs.shape[:2], ((obs[..., plane], color) for plane, color in MINATAR[game]))
