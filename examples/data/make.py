"""Draws sign.png, the picture that the OCR example reads, and sign.txt, the lines that stand on it.

The two files are committed; this script is only needed to change them. It takes the font file to draw with
(Debian: fonts-wqy-microhei):

    python examples/data/make.py /usr/share/fonts/truetype/wqy/wqy-microhei.ttc
"""

import pathlib
import sys

from PIL import Image, ImageDraw, ImageFont

LINES = [
    ("通途  TONGTU", 56, (20, 60, 110)),
    ("The open road for AI chips", 34, (40, 40, 40)),
    ("一桥飞架南北，天堑变通途", 34, (40, 40, 40)),
    ("Platform 9   Departure 14:35", 30, (150, 30, 30)),
    ("Ticket No. 20261121-0042", 30, (150, 30, 30)),
]
WIDTH, MARGIN, GAP = 640, 44, 22


def main():
    font_file = sys.argv[1]
    height = 2 * MARGIN + sum(size for _, size, _ in LINES) + GAP * (len(LINES) - 1) + 16
    picture = Image.new("RGB", (WIDTH, height), (238, 240, 236))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((14, 14, WIDTH - 15, height - 15), radius=18, outline=(20, 60, 110), width=4)
    y = MARGIN
    for text, size, colour in LINES:
        draw.text((MARGIN, y), text, font=ImageFont.truetype(font_file, size), fill=colour)
        y += size + GAP
    here = pathlib.Path(__file__).parent
    picture.save(here / "sign.png", optimize=True)
    (here / "sign.txt").write_text("".join(f"{text}\n" for text, _, _ in LINES))


if __name__ == "__main__":
    main()
