"""Make the PDF files in examples/documents/.

    pip install reportlab pypdf Pillow
    python examples/make_documents.py [FOLDER]

The quickstart needs only the files; this script is kept so that anybody can see what is in them and change it.
Manufacturers, products and people are invented. Pages, sizes and texts come out the same on every run,
but for the encrypted file, whose keys are random.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pypdf import PdfReader, PdfWriter
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.lib.units import cm
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table
from reportlab.platypus import Image as Figure

PASSWORD = "spare-parts"
"""Opens halvorn-x900.pdf."""

STYLES = getSampleStyleSheet()


def title(text: str) -> Flowable:
    return Paragraph(text, STYLES["Title"])


def heading(text: str) -> Flowable:
    return Paragraph(text, STYLES["Heading2"])


def body(text: str) -> Flowable:
    return Paragraph(text, STYLES["BodyText"])


def grid(rows: list[list[str]]) -> Flowable:
    return Table(
        [[Paragraph(cell, STYLES["BodyText"]) for cell in row] for row in rows],
        style=[("GRID", (0, 0), (-1, -1), 0.4, colors.grey), ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke)],
    )


def save(path: Path, story: list[Flowable], *, name: str, author: str) -> None:
    def footer(canvas: Canvas, document: SimpleDocTemplate) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(2 * cm, 1.2 * cm, name)
        canvas.drawRightString(19 * cm, 1.2 * cm, str(document.page))

    # invariant: no clock and no random document id, so that a run without changes makes the same bytes.
    document = SimpleDocTemplate(str(path), pagesize=A4, title=name, author=author, invariant=1, pageCompression=1)
    document.build(story, onFirstPage=footer, onLaterPages=footer)


# --- pictures -------------------------------------------------------------------------------------------------------


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


def figure(image: Image.Image, width: float = 13 * cm) -> Flowable:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    data.seek(0)
    return Figure(data, width=width, height=width * image.height / image.width)


# --- tarnwick-c450.pdf: the long one --------------------------------------------------------------------------------

UNITS = {
    "C-0": ("main motor", "does not reach its set speed within two seconds", "motor board"),
    "C-1": ("transfer belt", "is not found in its pressed position", "belt retraction clutch"),
    "C-2": ("developer unit", "reports a toner density outside its range", "toner density sensor"),
    "C-3": ("fuser unit", "does not warm up to its standby temperature", "heater lamp and thermistor"),
    "C-4": ("laser unit", "loses the beam detection signal", "polygon motor"),
    "C-5": ("duplex unit", "does not release the sheet to the registration rollers", "duplex transport motor"),
    "C-6": ("document feeder", "does not find its home position", "feeder lift sensor"),
    "C-7": ("finisher", "does not close the staple head", "staple motor"),
}
CHECKS = [
    "Switch the machine off, wait thirty seconds and switch it on again.",
    "Check the connector of the {part} and of its cable at both ends.",
    "Clean the {part} with a dry lint-free cloth; do not use solvents.",
    "Measure the supply of the {part}: it must lie between 23.3 V and 24.7 V.",
    "Turn the {unit} by hand: it must move without resistance or noise.",
    "Start the test in service mode, menu 7, and compare the value with the label inside the front door.",
    "Inspect the gears of the {unit} for worn or broken teeth.",
    "Replace the {part}.",
    "Replace the {unit} and reset its counter in service mode.",
    "Replace the main board as the last step, and restore its settings from the backup.",
]


def error_codes() -> Iterator[tuple[str, str, str, str]]:
    """Yield (code, unit, what happens, part), 200 of them, C-2557 among them."""
    rng = random.Random(2557)
    for prefix, (unit, symptom, part) in UNITS.items():
        numbers = sorted(rng.sample(range(1, 999), 25))
        if prefix == "C-2":
            numbers[numbers.index(min(numbers, key=lambda n: abs(n - 557)))] = 557
        for number in numbers:
            yield f"{prefix}{number:03d}", unit, symptom, part


def tarnwick_c450(path: Path) -> None:
    rng = random.Random(450)
    story: list[Flowable] = [
        title("Tarnwick C450 / C450i / C550"),
        title("Service Manual"),
        body("For authorised service engineers. Tarnwick Imaging Ltd., Version 4.2, firmware 4.20.1 or later."),
        Spacer(1, 1 * cm),
        figure(exploded_view(1, "Fig. 1  Tarnwick C450, general view")),
        PageBreak(),
        heading("1  Safety"),
        body("Unplug the machine before you open a cover. The fuser unit stays hot for forty minutes."),
        body("The laser unit holds a class 3B laser. Never look into the beam, never use reflecting tools nearby."),
        heading("2  Products in this manual"),
        grid(
            [
                ["Model", "Speed", "Firmware", "Paper capacity"],
                ["Tarnwick C450", "45 pages a minute", "4.20.1", "1,150 sheets"],
                ["Tarnwick C450i", "45 pages a minute", "4.20.1", "2,150 sheets"],
                ["Tarnwick C550", "55 pages a minute", "4.31.0", "3,650 sheets"],
            ]
        ),
        PageBreak(),
        heading("3  Error codes"),
        body("Every code has a page of its own: what happens, when it is raised, and the checks in their order."),
        PageBreak(),
    ]
    for number, (code, unit, symptom, part) in enumerate(error_codes(), start=1):
        story += [
            heading(f"Error code {code}: {unit}"),
            body(
                f"The {unit} {symptom}. The machine stops, shows {code} on the panel and keeps the job in its queue. "
                f"The code is raised after {rng.randint(2, 9)} attempts, from firmware "
                f"4.{rng.randint(1, 20)}.{rng.randint(0, 9)} on."
            ),
        ]
        if code == "C-2557":
            story.append(
                body(
                    "C-2557 almost always means that the carrier of the black developer unit is worn out: the toner "
                    "density sensor reads less than 0.4 V although the hopper is full. Grey haze over the whole page "
                    "is the usual complaint before the code appears."
                )
            )
        for step, check in enumerate(rng.sample(CHECKS, 6), start=1):
            story.append(body(f"{step}. {check.format(unit=unit, part=part)}"))
        related = f"C-{rng.randint(0, 7)}{rng.randint(1, 998):03d}"
        story.append(body(f"See also {related} when the {part} was replaced within the last 500 pages."))
        if number % 20 == 0:
            story.append(figure(exploded_view(number, f"Fig. {number // 20 + 1}  {unit.capitalize()}, exploded view")))
        story.append(PageBreak())
    story += [heading("4  Maintenance")]
    for number in range(1, 21):
        story += [
            heading(f"4.{number}  Every {number * 30},000 pages"),
            body(f"Replace the parts of set {number}, clean the paper path and print the adjustment sheet."),
            grid(
                [["Part number", "Part", "Pieces"]]
                + [[f"TW-{rng.randint(1000, 9999)}-{n:02d}", rng.choice(list(UNITS.values()))[2], "1"] for n in range(12)]
            ),
            PageBreak(),
        ]
    save(path, story, name="Tarnwick C450 Service Manual", author="Tarnwick Imaging Ltd.")


# --- the shorter ones -----------------------------------------------------------------------------------------------


def ardelune_m30(path: Path) -> None:
    rng = random.Random(30)
    causes = {
        "30.03.01": ("Scanner: Lampe wird nicht erkannt", "Lampenmodul prüfen und austauschen"),
        "30.03.20": ("Scanner: Grundstellung nicht gefunden", "Führungsschiene reinigen und schmieren"),
        "40.08.00": ("Netzwerk: Verbindung unterbrochen", "Kabel und Anschlussdose prüfen"),
        "50.02.11": ("Fixiereinheit: Aufwärmzeit überschritten", "Heizlampe und Thermistor prüfen"),
        "57.01.04": ("Lüfter: Drehzahl zu niedrig", "Lüfter säubern oder ersetzen"),
        "59.05.10": ("Hauptantrieb: Drehmoment zu hoch", "Zahnräder auf Verschleiß prüfen"),
    }
    story: list[Flowable] = [
        title("Ardelune M30 Wartungshandbuch"),
        body("Ardelune Bürotechnik GmbH. Gilt für die Modelle Ardelune M30 und M30dn ab Firmware 2.7.3."),
        body("Ausgabe vom 04.10.25, ersetzt die Ausgabe vom 11.02.24."),
        PageBreak(),
        heading("Fehlercodes"),
        grid([["Fehlercode", "Bedeutung", "Maßnahme"]] + [[code, *texts] for code, texts in causes.items()]),
        PageBreak(),
    ]
    for code, (meaning, action) in causes.items():
        story += [
            heading(f"Fehlercode {code}"),
            body(f"{meaning}. Das Gerät hält an und zeigt den Code auf dem Bedienfeld."),
            body(f"{action}. Danach das Gerät aus- und wieder einschalten und einen Probedruck anfertigen."),
            body(f"Bleibt der Fehler nach {rng.randint(2, 5)} Versuchen bestehen, ist die Hauptplatine zu tauschen."),
            PageBreak(),
        ]
    story += [
        heading("Reinigung"),
        body("Die Walzen werden mit einem trockenen Tuch gereinigt; Lösungsmittel greifen die Oberfläche an."),
    ]
    save(path, story, name="Ardelune M30 Wartungshandbuch", author="Ardelune Bürotechnik GmbH")


def lease_contract(path: Path) -> None:
    clauses = {
        "Subject": "The Lessor leaves to the Lessee two printing systems of type Brosevik LP-200 for the term of this agreement.",
        "Term": "The agreement begins on the day of delivery and runs for 48 months. It ends without notice.",
        "Rent": "The Lessee shall pay 412.50 euros a month, in advance, on the third working day of each month.",
        "Maintenance": "The Lessor shall maintain the systems and answer a call for service within eight working hours.",
        "Liability": "Neither party shall be liable for loss of profit. Liability for intent is not limited.",
        "Termination": "Either party may terminate this agreement for good cause, in writing, with a period of thirty days.",
        "Return": "At the end of the term the Lessee returns the systems complete and in working order.",
        "Governing law": "This agreement is governed by the law of the place where the Lessor has its seat.",
    }
    story: list[Flowable] = [
        title("Lease Agreement"),
        body("between Brosevik Leasing AB (the Lessor) and Office Quarter 9 Cooperative (the Lessee)"),
    ]
    for number, (name, text) in enumerate(clauses.items(), start=1):
        story += [heading(f"§ {number}  {name}"), body(text), body("Changes to this clause need the written form."), PageBreak()]
    story.append(body("Signed in two copies. The parties have read every page of this agreement."))
    save(path, story, name="Lease agreement LP-200", author="Brosevik Leasing AB")


def adhesion_paper(path: Path) -> None:
    results = [("20 %", 3.1), ("40 %", 4.4), ("60 %", 4.2), ("80 %", 2.6)]
    story: list[Flowable] = [
        title("Toner Adhesion on Recycled Paper under Changing Humidity"),
        body("M. Oduya, L. Fernhill. Kestrane Institute for Print Research"),
        heading("Abstract"),
        body(
            "We measured how strongly toner holds on recycled paper at four levels of relative humidity. Adhesion is "
            "highest between 40 and 60 percent and falls by a third above that. A lower fusing temperature can be "
            "made up for by a slower transport, up to a limit that we give."
        ),
        heading("1  Introduction"),
        body("Recycled paper takes up water faster than fresh paper. The water cools the nip of the fuser."),
        PageBreak(),
        heading("2  Method"),
        body("Sheets rested for 24 hours in a climate chamber. Adhesion was measured by the tape test, 30 sheets each."),
        figure(exploded_view(77, "Fig. 1  Test rig of the Kestrane Institute"), 11 * cm),
        PageBreak(),
        heading("3  Results"),
        figure(bar_chart(results, "N"), 11 * cm),
        grid([["Relative humidity", "Force"]] + [[label, f"{value} N"] for label, value in results]),
        PageBreak(),
        heading("4  Conclusion"),
        body("Keep paper stores between 40 and 60 percent relative humidity. The rest of the variance is paper weight."),
        heading("References"),
        body("[1] L. Fernhill, Paper and Water, 2019. [2] M. Oduya, Fusing at Low Temperature, 2022."),
    ]
    save(path, story, name="Toner Adhesion on Recycled Paper", author="Kestrane Institute")


def firmware_notes(path: Path) -> None:
    story: list[Flowable] = [title("Tarnwick C550 Firmware Release Notes"), body("Tarnwick Imaging Ltd.")]
    changes = [
        "Error code C-3412 no longer appears when the machine wakes from sleep in a cold room.",
        "Scanning to a network folder accepts names with umlauts.",
        "Two-sided copies of receipts keep their order.",
        "The page counter survives a power cut during its update.",
    ]
    for number in range(31, 25, -1):
        story += [heading(f"Version 4.{number}.0"), *(body(f"- {text}") for text in changes[number % 3 :])]
    story.append(body("Known limitation: after Version 4.31.0 the finisher must be calibrated once, see C-7088."))
    save(path, story, name="Tarnwick C550 Firmware Release Notes", author="Tarnwick Imaging Ltd.")


def halvorn_x900(path: Path) -> None:
    """Encrypted with AES-256: nothing but hash and size can be known of it without the password."""
    rng = random.Random(900)
    story: list[Flowable] = [
        title("Halvorn X900 Parts Catalogue"),
        body("Halvorn Systems BV. Confidential, for service partners only. Edition for Version 3.0 of the machine."),
        PageBreak(),
    ]
    for number in range(1, 9):
        rows = [[f"HV-{rng.randint(10000, 99999)}", f"Item {n} of assembly {number}", str(rng.randint(1, 4))] for n in range(1, 15)]
        story += [
            heading(f"Assembly {number}"),
            figure(exploded_view(900 + number, f"Halvorn X900, assembly {number}"), 11 * cm),
            grid([["Order number", "Name", "Pieces"], *rows]),
            PageBreak(),
        ]
    story.append(body("Replace the pump after error code H-9001 before any other part is ordered."))
    save(path, story, name="Halvorn X900 Parts Catalogue", author="Halvorn Systems BV")
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt(PASSWORD, algorithm="AES-256")
    writer.write(path)


def damaged_bulletin(path: Path) -> None:
    """A download that broke off, and a bad disk after that: no reader finds a page tree in it."""
    story = [title("Tarnwick Service Bulletin 17"), *(body("Check the fuser cable for chafing. " * 12) for _ in range(30))]
    save(path, story, name="Tarnwick Service Bulletin 17", author="Tarnwick Imaging Ltd.")
    whole = path.read_bytes()
    noise = random.Random(17).randbytes(len(whole))
    path.write_bytes(whole[:60] + noise[60 : len(whole) // 2])


def scanned_note(path: Path) -> None:
    """Two pages that are pictures of text and nothing else, a little askew, as scanners make them."""
    rng = random.Random(8)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    for page in (1, 2):
        sheet = Image.new("L", (827, 1169), 250)
        draw = ImageDraw.Draw(sheet)
        draw.text((90, 90), f"DELIVERY NOTE 20718, page {page}", fill=30, font=ImageFont.load_default(30))
        for line in range(22):
            text = f"{line + 1:02d}   Halvorn X900 part HV-{rng.randint(10000, 99999)}   {rng.randint(1, 9)} pieces"
            draw.text((90, 180 + line * 36), text, fill=40, font=ImageFont.load_default(22))
        sheet = sheet.rotate(rng.uniform(-0.8, 0.8), fillcolor=250).filter(ImageFilter.GaussianBlur(0.6))
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=55)
        data.seek(0)
        canvas.drawImage(ImageReader(data), 0, 0, *A4)
        canvas.showPage()
    canvas.save()


DOCUMENTS = {
    "adhesion-paper.pdf": adhesion_paper,
    "ardelune-m30.pdf": ardelune_m30,
    "damaged-bulletin.pdf": damaged_bulletin,
    "firmware-notes.pdf": firmware_notes,
    "halvorn-x900.pdf": halvorn_x900,
    "lease-contract.pdf": lease_contract,
    "scanned-note.pdf": scanned_note,
    "tarnwick-c450.pdf": tarnwick_c450,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in DOCUMENTS.items():
        path = folder / name
        make(path)
        print(f"{name:24} {path.stat().st_size / 1024:7.0f} KiB")


if __name__ == "__main__":
    main()
