"""Frames of a video: pictures of several episodes side by side, with the agent's Q-values."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qlax.util.text import four_digits

SMALLEST, WIDEST = 240, 1920  # pixels: smallest longer side of one picture, largest width of a frame
PAPER, INK, PALE = (250, 250, 250), (30, 30, 30), (165, 165, 165)
BAR, CHOSEN, AT_RANDOM = (190, 200, 208), (0, 114, 178), (213, 94, 0)  # colour-blind people can tell the last two apart
TEXT_SIZE, LINE, MARGIN = 14, 19, 10
BAR_WIDTH, NUMBER_WIDTH = 90, 55
MOST_BARS, MOST_MEMBERS, LONGEST_NAME = 18, 4, 14


class Moment(NamedTuple):
    """Pictures of N episodes at one time step, with the agent's Q-values and actions."""

    pictures: list[np.ndarray]  # uint8 [H, W, 3] each
    playing: np.ndarray  # [N] bool, False where the episode has ended
    returns: np.ndarray  # [N], return so far
    lengths: np.ndarray  # [N], number of steps so far
    q: np.ndarray  # [N, M, A], -inf for illegal actions; where the episode has ended, Q-values of its last action
    action: np.ndarray  # [N, M], chosen actions


class Painter:
    """Painter that draws one image for every `Moment`.

    Args:
      values: If True, draw Q-values, the chosen action and the return so far beside each picture.
      names: Names of the actions.
      deciders: What chooses each number of an action, see `qlax.playing.moments.deciders`.
    """

    def __init__(self, values: bool, names: Sequence[str], deciders: Sequence[str]):
        self._values, self._deciders = values, deciders
        self._names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}." for name in names]
        self._font: Any = ImageFont.load_default(TEXT_SIZE)
        self._name_width = 18 + math.ceil(max(map(self._font.getlength, self._names), default=0.0))
        self._low, self._high = math.inf, -math.inf  # range of the Q-values so far, so that frames share one scale

    def image(self, moment: Moment) -> Image.Image:
        """Draw one frame with all episodes."""
        q = moment.q[moment.playing]
        finite = q[np.isfinite(q)]
        self._low, self._high = min([self._low, *finite]), max([self._high, *finite])
        return _grid([self._tile(moment, number) for number in range(len(moment.pictures))])

    def _tile(self, moment: Moment, number: int) -> Image.Image:
        """Draw one episode, dimmed if it has ended while others go on."""
        picture = Image.fromarray(moment.pictures[number])
        longer = max(picture.size)
        if longer < SMALLEST:
            factor = math.ceil(SMALLEST / longer)
            picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        if self._values:
            panel = self._panel(moment, number)
            both = Image.new("RGB", (picture.width + panel.width, max(picture.height, panel.height)), PAPER)
            both.paste(picture, (0, (both.height - picture.height) // 2))
            both.paste(panel, (picture.width, 0))
            picture = both
        if not moment.playing[number] and moment.playing.any():
            picture = Image.blend(picture, Image.new("RGB", picture.size, PALE), 0.6)
        return picture

    def _panel(self, moment: Moment, number: int) -> Image.Image:
        """Draw the return and the length of episode `number`, and bars of each team member's Q-values."""
        members, actions = moment.q.shape[1:]
        columns, bars = min(members, MOST_MEMBERS), min(actions, MOST_BARS)
        width = self._name_width + BAR_WIDTH + NUMBER_WIDTH
        height = 2 * MARGIN + LINE * (4 + bars + (members > 1) + (actions > bars))
        image = Image.new("RGB", (columns * (width + 2 * MARGIN), height), PAPER)
        draw = ImageDraw.Draw(image)
        draw.text((MARGIN, MARGIN), f"return {four_digits(float(moment.returns[number]))}", INK, self._font)
        steps = f"step {moment.lengths[number]:,}"
        ended = "" if moment.playing[number] else ", ended"
        draw.text((MARGIN, MARGIN + LINE), steps + ended, INK, self._font)
        draw.text((MARGIN, MARGIN + 2 * LINE + LINE // 2), "Q of each action", INK, self._font)
        for member in range(columns):
            left, top = MARGIN + member * (width + 2 * MARGIN), MARGIN + 3 * LINE + LINE // 2
            if members > 1:
                more = f" (of {members})" if member + 1 == columns < members else ""
                draw.text((left, top), f"{self._deciders[member]}{more}", INK, self._font)
                top += LINE
            action = int(moment.action[number, member]) if moment.playing[number] else None
            self._draw_bars(draw, left, top, moment.q[number, member], action)
        return image

    def _draw_bars(self, draw: ImageDraw.ImageDraw, left: int, top: int, q: np.ndarray, action: int | None) -> None:
        """Draw bars of one member's Q-values, those of the best actions if there are many.

        Args:
          draw: Drawing of the panel.
          left: Pixel of the left edge.
          top: Pixel of the upper edge.
          q: Q-values `[A]`, -inf for illegal actions.
          action: Chosen action; None if the episode has ended.
        """
        listed = np.arange(len(q))
        if len(q) > MOST_BARS:
            listed = np.argsort(-q, kind="stable")[:MOST_BARS]
            if action is not None and action not in listed:
                listed[-1] = action
        low, high = min(self._low, 0.0), max(self._high, 0.0)
        if 0 <= self._high - self._low < (high - low) / 4:  # bars from zero would all look alike
            low, high = self._low, self._high
        bars = left + self._name_width
        right = bars + BAR_WIDTH + NUMBER_WIDTH

        def place(value: float) -> float:
            return bars + BAR_WIDTH * (value - low) / ((high - low) or 1.0)

        zero = place(min(max(0.0, low), high))
        chosen = CHOSEN if int(q.argmax()) == action else AT_RANDOM
        for row, each in enumerate(listed):
            y, is_legal = top + row * LINE, np.isfinite(q[each])
            ink = chosen if each == action else INK if is_legal else PALE
            if each == action:  # an arrow, as the bar may have no length
                draw.polygon([(left, y + 5), (left + 6, y + LINE / 2), (left, y + LINE - 6)], chosen)
            draw.text((bars - 5, y + LINE / 2), self._names[each], ink, self._font, anchor="rm")
            worth = f"{q[each]:#.3g}".rstrip(".") if is_legal else "-"
            draw.text((right, y + LINE / 2), worth, ink, self._font, anchor="rm")
            if is_legal:
                ends = sorted((place(float(q[each])), zero))
                draw.rectangle((ends[0], y + 3, ends[1], y + LINE - 4), chosen if each == action else BAR)
        draw.line((zero, top, zero, top + LINE * len(listed) - 1), INK)
        if len(q) > len(listed):
            draw.text((left, top + LINE * len(listed)), f"best {len(listed)} of {len(q)}", INK, self._font)


def _grid(tiles: list[Image.Image]) -> Image.Image:
    """Arrange tiles in a roughly square grid, padded to an even width and height, which H.264 requires."""
    width, height = (max(sizes) for sizes in zip(*(tile.size for tile in tiles), strict=True))
    columns = min(range(1, len(tiles) + 1), key=lambda n: (max(n * width, -(-len(tiles) // n) * height * 1.6), n))
    gap = 4 if len(tiles) > 1 else 0
    rows = -(-len(tiles) // columns)
    shrink = min(1.0, WIDEST / (columns * (width + gap) - gap))
    if shrink < 1:
        width, height = int(width * shrink), int(height * shrink)
        tiles = [
            tile.resize((int(tile.width * shrink), int(tile.height * shrink)), Image.Resampling.LANCZOS)
            for tile in tiles
        ]
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    image = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        image.paste(tile, (column * (width + gap), row * (height + gap)))
    return image
