"""Histograms as SVG text: a few bars with their counts, no library needed."""

import collections
from html import escape
import math
from typing import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 420, 230, 44


def histogram_svg(panels: Sequence[tuple[str, Mapping[float, int]]], title: str, bars: int = 24) -> str:
    """Panels side by side, each (caption, how often each value occurred), drawn as `bars` bars of equal width."""
    width = len(panels) * WIDTH + MARGIN
    drawn = ''.join(_panel(MARGIN + i * WIDTH, caption, values, bars) for i, (caption, values) in enumerate(panels))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT + 100}" '
            f'font-family="sans-serif" font-size="12" fill="#333">\n<rect width="100%" height="100%" fill="white"/>\n'
            f'<text x="{MARGIN}" y="26" font-size="15">{escape(title)}</text>\n{drawn}</svg>\n')


def _panel(left: float, caption: str, values: Mapping[float, int], bars: int) -> str:
    total, top, inner = sum(values.values()), 60, WIDTH - MARGIN - 20
    bottom = top + HEIGHT - 20
    parts = [_text(left, top - 10, f'{caption} (n = {total:,})')]
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{left + inner}" y2="{bottom}" stroke="#333"/>\n')
    if not total:
        return ''.join(parts) + _text(left, top + 40, 'none')
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = collections.Counter()
    for value, count in values.items():
        counts[min(int((value - low) / (high - low) * bars), bars - 1)] += count
    most, step = max(counts.values()), inner / bars
    for bar, count in sorted(counts.items()):
        height = max((bottom - top) * count / most, 1)
        parts.append(f'<rect x="{left + bar * step:.1f}" y="{bottom - height:.1f}" width="{step - 1:.1f}" '
                     f'height="{height:.1f}" fill="#4878a8"/>\n')
    parts.append(_text(left - 6, top + 8, f'{most:,}', 'end'))
    parts.append(_text(left - 6, bottom, '0', 'end'))
    mean = sum(value * count for value, count in values.items()) / total
    for i in range(5):
        value = low + (high - low) * i / 4
        parts.append(_text(left + inner * i / 4, bottom + 18, f'{value:.3g}', 'middle'))
    spread = math.sqrt(sum(count * (value - mean) ** 2 for value, count in values.items()) / total)
    parts.append(_text(left, bottom + 40, f'mean {mean:.3f}, standard deviation {spread:.3f}'))
    return ''.join(parts)


def _text(x: float, y: float, text: str, anchor: str = 'start') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>\n'
