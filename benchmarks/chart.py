"""Horizontal bars, each of stacked parts, as an SVG that reads well on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_WIDTH, _LEFT, _RIGHT = 760, 170, 60
_BAR, _GAP, _TOP, _LEGEND = 22, 12, 34, 30
_SWATCH, _LETTER = 12, 6.6
_COLORS = ("#3f6fb5", "#b5623f", "#3f8f5f", "#8a5fb0", "#a8843a", "#b04a6f", "#4a8f9c", "#6f6f6f")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}.in{fill:#fff;text-anchor:middle}"
    ".label{text-anchor:end}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.in{fill:#fff}}"
)


def stacked(title: str, bars: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """The drawing as text: one bar for each label, one part for each name in it, in the order in which they appear."""
    names = list(dict.fromkeys(name for parts in bars.values() for name in parts))
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}
    scale = (_WIDTH - _LEFT - _RIGHT) / max((sum(parts.values()) for parts in bars.values()), default=1.0)
    height = _TOP + len(bars) * (_BAR + _GAP) + _LEGEND
    box = f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}><style>{_STYLE}</style>',
        f'<text class="title" x="8" y="18">{escape(title)}</text>',
    ]
    for row, (label, parts) in enumerate(bars.items()):
        y = _TOP + row * (_BAR + _GAP)
        base = y + _BAR * 0.7
        lines.append(f'<text class="label" x="{_LEFT - 8}" y="{base:g}">{escape(label)}</text>')
        x = float(_LEFT)
        for name, value in parts.items():
            width = value * scale
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colors[name]}">'
                f"<title>{escape(name)}: {value:g} {escape(unit)}</title></rect>"
            )
            if width > len(f"{value:.0f}") * _LETTER + 6:
                lines.append(f'<text class="in" x="{x + width / 2:.1f}" y="{base:g}">{value:.0f}</text>')
            x += width
        lines.append(f'<text x="{x + 6:.1f}" y="{base:g}">{sum(parts.values()):.0f} {escape(unit)}</text>')
    x, y = 8.0, height - _SWATCH - 4
    for name in names:
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="{_SWATCH}" height="{_SWATCH}" fill="{colors[name]}"/>')
        lines.append(f'<text x="{x + _SWATCH + 5:.1f}" y="{y + _SWATCH - 2}">{escape(name)}</text>')
        x += _SWATCH + 5 + len(name) * _LETTER + 14
    return "\n".join([*lines, "</svg>", ""])
