# SPDX-License-Identifier: GPL-2.0-only
"""Bars in an SVG file."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

ROW, GAP, LEFT, WIDTH, RIGHT = 22, 34, 330, 460, 120
STYLE = (
    "text{font:13px sans-serif;fill:#1f2328}.t{font-weight:bold}"
    ".zfw{fill:#2f81f7}.other{fill:#afb8c1}.limit{stroke:#cf222e;stroke-width:2}"
)


@dataclass(frozen=True)
class Bar:
    """A bar, and the limit to draw across it."""

    label: str
    value: float
    text: str
    is_ours: bool = True
    limit: float | None = None


def svg(panels: dict[str, list[Bar]]) -> str:
    """One panel of bars under the other, each with a scale of its own."""
    parts: list[str] = []
    y = 8
    for title, bars in panels.items():
        y += GAP
        parts.append(f'<text class="t" x="10" y="{y - 10}">{escape(title)}</text>')
        scale = WIDTH / max(max(bar.value, bar.limit or 0) for bar in bars)
        for bar in bars:
            kind = "zfw" if bar.is_ours else "other"
            length = bar.value * scale
            parts += [
                f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>',
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="18"/>',
            ]
            end = length
            if bar.limit is not None:
                end = max(end, bar.limit * scale)
                x = LEFT + bar.limit * scale
                parts.append(f'<path class="limit" d="M{x:.1f} {y - 1}v20"/>')
            parts.append(f'<text x="{LEFT + end + 6:.1f}" y="{y + 14}">{escape(bar.text)}</text>')
            y += ROW
    width, height = LEFT + WIDTH + RIGHT, y + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f"<style>{STYLE}</style>"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
