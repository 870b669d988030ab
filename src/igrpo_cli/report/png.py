"""Figures as PNG, with a font of a package: a machine that trains often has none of its own."""

from __future__ import annotations

import re
from pathlib import Path

from igrpo_cli.errors import UsageError

ZOOM = 2.5
"""Pixels per unit of the drawing: sharp on paper in the column of an article."""


def rasterise(svg: str, css: str) -> bytes:
    """The PNG of a drawing in the light colours of the page's style sheet. Raises UsageError without `[png]`."""
    try:
        import font_roboto
        import resvg_py
    except ImportError as error:
        raise UsageError("--png needs a rasteriser", hint="pip install 'igrpo-cli[png]'") from error
    light = dict(re.findall(r"--(\w+): (#\w+)", css[: css.index("@media")]))
    rules = "".join(re.findall(r"^\.chart .*$", css, re.MULTILINE))
    style = re.sub(r"var\(--(\w+)\)", lambda name: light[name[1]], rules)
    fonts = Path(font_roboto.__file__).parent / "files"
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-size="11" ', 1),
            style_sheet=style,
            font_files=[str(fonts / "Roboto-Regular.ttf")],
            font_family="Roboto",
            skip_system_fonts=True,
            background=light["paper"],
            zoom=ZOOM,
        )
    )
