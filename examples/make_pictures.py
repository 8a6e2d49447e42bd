"""Pictures for make_documents.py: drawings, a chart, and pages as a scanner sees them."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw, ImageFilter, ImageFont


def exploded_view(seed: int, label: str, size: tuple[int, int] = (640, 400)) -> Image.Image:
    """Draw a figure in the manner of a service manual: parts along an axis, numbered balloons."""
    rng = random.Random(seed)
    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)
    draw.line((30, size[1] // 2, size[0] - 30, size[1] // 2), fill=170, width=1)
    x = 50
    for number in range(1, rng.randint(6, 9)):
        width, height = rng.randint(24, 60), rng.randint(60, 220)
        top = (size[1] - height) // 2
        draw.rectangle((x, top, x + width, top + height), outline=0, width=2)
        for hole in range(rng.randint(0, 3)):
            draw.ellipse((x + 6, top + 12 + hole * 18, x + 16, top + 22 + hole * 18), outline=0, width=2)
        draw.line((x + width // 2, top, x + width // 2 + 14, top - 34), fill=0)
        draw.ellipse((x + width // 2 + 4, top - 58, x + width // 2 + 28, top - 34), outline=0, width=2)
        draw.text((x + width // 2 + 12, top - 55), str(number), fill=0, font=font)
        x += width + rng.randint(14, 30)
    draw.text((30, size[1] - 30), label, fill=0, font=font)
    return image


def bar_chart(values: list[tuple[str, float]], unit: str) -> Image.Image:
    """Draw a bar chart with its values."""
    image = Image.new("RGB", (640, 360), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)
    highest = max(value for _, value in values)
    step = 600 // len(values)
    for index, (label, value) in enumerate(values):
        left, top = 40 + index * step, 310 - int(260 * value / highest)
        draw.rectangle((left, top, left + step - 24, 310), fill=(70, 110, 160))
        draw.text((left, 318), label, fill="black", font=font)
        draw.text((left, top - 22), f"{value:g} {unit}", fill="black", font=font)
    return image


def scanned_page(rng: random.Random, title: str) -> Image.Image:
    """Draw a page of text, a little askew and blurred, at 100 dots per inch."""
    sheet = Image.new("L", (827, 1169), 250)
    draw = ImageDraw.Draw(sheet)
    draw.text((90, 90), title, fill=30, font=ImageFont.load_default(30))
    for line in range(22):
        text = f"{line + 1:02d}  Halvorn X900 HV-{rng.randint(10000, 99999)}  {rng.randint(1, 9)} pieces"
        draw.text((90, 180 + line * 36), text, fill=40, font=ImageFont.load_default(22))
    return sheet.rotate(rng.uniform(-0.8, 0.8), fillcolor=250).filter(ImageFilter.GaussianBlur(0.6))
