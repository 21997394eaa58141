"""Draws the pictures that the OCR example reads, and beside each NAME.png the lines that stand on it, NAME.txt.

The files are committed; this script is only needed to change them. It takes the font file to draw with
(Debian: fonts-wqy-microhei):

    python examples/data/make.py /usr/share/fonts/truetype/wqy/wqy-microhei.ttc
"""

import pathlib
import sys

from PIL import Image, ImageDraw, ImageFont

BLUE, GREY, RED, GREEN = (20, 60, 110), (40, 40, 40), (150, 30, 30), (30, 100, 60)

SIGN = [
    ("通途  TONGTU", 56, BLUE),
    ("The open road for AI chips", 34, GREY),
    ("一桥飞架南北，天堑变通途", 34, GREY),
    ("Platform 9   Departure 14:35", 30, RED),
    ("Ticket No. 20261121-0042", 30, RED),
]

NOTICE = [
    ("路况公告 ROAD NOTICE", 52, BLUE),
    ("Bridge 7 is open to all vehicles again.", 32, GREY),
    ("七号大桥恢复通行，雨天路滑，请减速慢行。", 32, GREY),
    ("Toll 15.00 yuan, speed limit 40 km/h", 28, GREY),
    ("服务热线：(010) 8642-1357", 28, GREEN),
]
STAMP, ANGLE = "OPEN DAY AND NIGHT", 14
TURNED = "Seen from the other side"


def sheet(width, height):
    picture = Image.new("RGB", (width, height), (238, 240, 236))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((14, 14, width - 15, height - 15), radius=18, outline=BLUE, width=4)
    return picture


def write(picture, lines, x, y, gap, font_file):
    draw = ImageDraw.Draw(picture)
    for text, size, colour in lines:
        draw.text((x, y), text, font=ImageFont.truetype(font_file, size), fill=colour)
        y += size + gap


def paste(picture, text, size, colour, angle, centre, font_file):
    """One line turned by an angle, in degrees against the clock, about its centre."""
    font = ImageFont.truetype(font_file, size)
    mask = Image.new("L", (int(font.getlength(text)) + 16, size * 2), 0)
    ImageDraw.Draw(mask).text((8, size // 3), text, font=font, fill=255)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    place = (centre[0] - mask.width // 2, centre[1] - mask.height // 2)
    picture.paste(Image.new("RGB", mask.size, colour), place, mask)


def sign(font_file):
    margin, gap = 44, 22
    height = 2 * margin + sum(size for _, size, _ in SIGN) + gap * (len(SIGN) - 1) + 16
    picture = sheet(640, height)
    write(picture, SIGN, margin, margin, gap, font_file)
    return picture, [text for text, _, _ in SIGN]


def notice(font_file):
    picture = sheet(800, 600)
    write(picture, NOTICE, 44, 40, 22, font_file)
    paste(picture, STAMP, 36, RED, ANGLE, (590, 400), font_file)
    paste(picture, TURNED, 30, GREY, 180, (240, 510), font_file)
    return picture, [*(text for text, _, _ in NOTICE), STAMP, TURNED]


def main():
    here = pathlib.Path(__file__).parent
    for name, make in (("sign", sign), ("notice", notice)):
        picture, lines = make(sys.argv[1])
        picture.save(here / f"{name}.png", optimize=True)
        (here / f"{name}.txt").write_text("".join(f"{text}\n" for text in lines))


if __name__ == "__main__":
    main()
