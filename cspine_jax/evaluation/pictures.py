"""One CT slice as a PNG data URI, and simple charts as inline SVG: no plotting library to load, sharp at any width."""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 300
Points = Sequence[float] | np.ndarray

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38


def window_png(hu: np.ndarray, window: tuple[float, float], largest: int = 320) -> str:
    """Windowed 8-bit PNG as a `data:` URI.

    Args:
        hu: `[H, W]` HU.
        window: (level, width) in HU.
        largest: longer images are thinned by a whole factor to about this many pixels.
    """
    step = max(1, round(max(hu.shape) / largest))
    level, width = window
    grey = np.clip((hu[::step, ::step].astype(np.float32) - (level - width / 2)) / width, 0, 1)
    pixels = np.round(grey * 255).astype(np.uint8)
    rows = np.concatenate([np.zeros((len(pixels), 1), np.uint8), pixels], axis=1)  # filter byte 0 in front of each row
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


class Chart:
    """Lines and dots over two linear axes. Colours are CSS classes `s0..s5`, set by the page for light and dark."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_name: str, y_name: str, what: str):
        self._x, self._y = _widen(*x), _widen(*y)
        self._parts: list[str] = []
        self._what = what
        self._axes(x_name, y_name)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._x, self._y
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    def _axes(self, x_name: str, y_name: str) -> None:
        base, left = HEIGHT - BOTTOM, LEFT
        for value in ticks(*self._x):
            at = self._at(value, self._y[0])[0]
            self._parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{base}"/>')
            self._parts.append(f'<text x="{at:.1f}" y="{base + 14}" text-anchor="middle">{label(value)}</text>')
        for value in ticks(*self._y):
            at = self._at(self._x[0], value)[1]
            self._parts.append(f'<path class="grid" d="M{left} {at:.1f}H{WIDTH - RIGHT}"/>')
            self._parts.append(f'<text x="{left - 5}" y="{at + 3.5:.1f}" text-anchor="end">{label(value)}</text>')
        self._parts.append(f'<path class="axis" d="M{left} {TOP}V{base}H{WIDTH - RIGHT}"/>')
        middle = (left + WIDTH - RIGHT) / 2
        self._parts.append(
            f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'
        )
        self._parts.append(
            f'<text class="name" transform="translate(11 {(TOP + base) / 2}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_name)}</text>"
        )

    def line(self, x: Points, y: Points, style: str) -> None:
        """A polyline; `style` is a CSS class such as "s0" or "ref"."""
        points = [
            self._at(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)
        ]
        if points:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            self._parts.append(f'<path class="line {style}" d="M{path}"/>')

    def dots(self, x: Points, y: Points, radius: Points, style: str, tips: Sequence[str]) -> None:
        """Circles with a tooltip each."""
        for a, b, r, tip in zip(x, y, radius, tips, strict=True):
            cx, cy = self._at(float(a), float(b))
            title = f"<title>{escape(tip)}</title>"
            self._parts.append(f'<circle class="dot {style}" cx="{cx:.1f}" cy="{cy:.1f}" r="{r:.1f}">{title}</circle>')

    def svg(self) -> str:
        """The chart as an `<svg>` element that scales to its container."""
        body = "".join(self._parts)
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self._what)}">{body}</svg>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's text: short, and without trailing zeros."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:g}"


def _widen(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)
