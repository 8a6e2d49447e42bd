"""Make the PDF files in examples/documents/.

    pip install reportlab pypdf Pillow
    python examples/make_documents.py [FOLDER]

The quickstart needs only the files; this script is kept so that anybody can see what is in them and change
it. Manufacturers, products and people are invented. Every run makes the same bytes, but for the encrypted
file, whose keys are random.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from make_pictures import bar_chart, exploded_view, scanned_page
from PIL import Image
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
    """Return a title."""
    return Paragraph(text, STYLES["Title"])


def heading(text: str) -> Flowable:
    """Return a heading."""
    return Paragraph(text, STYLES["Heading2"])


def body(text: str) -> Flowable:
    """Return a paragraph."""
    return Paragraph(text, STYLES["BodyText"])


def section(name: str, *parts: str | Flowable) -> list[Flowable]:
    """Return a heading and what stands below it; plain strings are paragraphs."""
    return [heading(name), *(body(part) if isinstance(part, str) else part for part in parts)]


def grid(rows: list[list[str]]) -> Flowable:
    """Return a table whose first row is its head."""
    return Table(
        [[Paragraph(cell, STYLES["BodyText"]) for cell in row] for row in rows],
        style=[
            ("GRID", (0, 0), (-1, -1), 0.4, colors.grey),
            ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
        ],
    )


def save(path: Path, story: list[Flowable], *, name: str, author: str) -> None:
    """Write the PDF file, with page numbers."""

    def footer(canvas: Canvas, document: SimpleDocTemplate) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(2 * cm, 1.2 * cm, name)
        canvas.drawRightString(19 * cm, 1.2 * cm, str(document.page))

    # invariant: no clock and no random document id, so that a run without changes makes the same bytes.
    document = SimpleDocTemplate(str(path), pagesize=A4, title=name, author=author, invariant=1, pageCompression=1)
    document.build(story, onFirstPage=footer, onLaterPages=footer)


def figure(image: Image.Image, width: float = 13 * cm) -> Flowable:
    """Return an image as wide as said."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    data.seek(0)
    return Figure(data, width=width, height=width * image.height / image.width)


# --- tarnwick-c450.pdf: the long one ---

UNITS = {
    "C-0": ("main motor", "does not reach its set speed within two seconds", "motor board"),
    "C-1": ("transfer belt", "is not found in its pressed position", "belt retraction clutch"),
    "C-2": ("developer unit", "reports a toner density outside its range", "toner density sensor"),
    "C-3": ("fuser unit", "does not warm up to its standby temperature", "heater lamp and thermistor"),
    "C-4": ("laser unit", "loses the beam detection signal", "polygon motor"),
    "C-5": (
        "duplex unit",
        "does not release the sheet to the registration rollers",
        "duplex transport motor",
    ),
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


WORN_CARRIER = (
    "C-2557 almost always means that the carrier of the black developer unit is worn out: the toner density "
    "sensor reads less than 0.4 V although the hopper is full. Grey haze over the page comes before the code."
)


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
    """Make the long one: a service manual with 200 error codes."""
    rng = random.Random(450)
    models = [
        ["Model", "Speed", "Firmware", "Paper capacity"],
        ["Tarnwick C450", "45 pages a minute", "4.20.1", "1,150 sheets"],
        ["Tarnwick C450i", "45 pages a minute", "4.20.1", "2,150 sheets"],
        ["Tarnwick C550", "55 pages a minute", "4.31.0", "3,650 sheets"],
    ]
    story: list[Flowable] = [
        title("Tarnwick C450 / C450i / C550"),
        title("Service Manual"),
        body("For authorised service engineers. Tarnwick Imaging Ltd., Version 4.2, firmware 4.20.1 or later."),
        Spacer(1, 1 * cm),
        figure(exploded_view(1, "Fig. 1  Tarnwick C450, general view")),
        PageBreak(),
        *section(
            "1  Safety",
            "Unplug the machine before you open a cover. The fuser unit stays hot for forty minutes.",
            "The laser unit holds a class 3B laser. Never look into the beam.",
        ),
        *section("2  Products in this manual", grid(models), PageBreak()),
        *section("3  Error codes", "Every code has a page of its own: what happens, when, and what to check."),
        PageBreak(),
    ]
    for number, (code, unit, symptom, part) in enumerate(error_codes(), start=1):
        steps = rng.sample(CHECKS, 6)
        story += section(
            f"Error code {code}: {unit}",
            f"The {unit} {symptom}. The machine stops, shows {code} and keeps its queue. The code is "
            f"raised after {rng.randint(2, 9)} attempts, from firmware 4.{rng.randint(1, 20)}.0 on.",
            *([WORN_CARRIER] if code == "C-2557" else []),
            *(f"{step}. {text.format(unit=unit, part=part)}" for step, text in enumerate(steps, start=1)),
            f"See also C-{rng.randint(0, 7)}{rng.randint(1, 998):03d} when the {part} was replaced lately.",
        )
        if number % 20 == 0:
            story.append(figure(exploded_view(number, f"Fig. {number // 20 + 1}  {unit.capitalize()}")))
        story.append(PageBreak())
    story.append(heading("4  Maintenance"))
    names = [part for _, _, part in UNITS.values()]
    for number in range(1, 21):
        parts = [[f"TW-{rng.randint(1000, 9999)}-{n:02d}", rng.choice(names), "1"] for n in range(12)]
        story += section(
            f"4.{number}  Every {number * 30},000 pages",
            f"Replace the parts of set {number}, clean the paper path and print the adjustment sheet.",
            grid([["Part number", "Part", "Pieces"], *parts]),
            PageBreak(),
        )
    save(path, story, name="Tarnwick C450 Service Manual", author="Tarnwick Imaging Ltd.")


# --- the shorter ones ---


def ardelune_m30(path: Path) -> None:
    """Make a German service manual without images; two dates in it look like error codes."""
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
        story += section(
            f"Fehlercode {code}",
            f"{meaning}. Das Gerät hält an und zeigt den Code auf dem Bedienfeld.",
            f"{action}. Danach das Gerät aus- und wieder einschalten und einen Probedruck anfertigen.",
            f"Bleibt der Fehler nach {rng.randint(2, 5)} Versuchen, ist die Hauptplatine zu tauschen.",
            PageBreak(),
        )
    story += section("Reinigung", "Die Walzen mit einem trockenen Tuch reinigen; Lösungsmittel greifen sie an.")
    save(path, story, name="Ardelune M30 Wartungshandbuch", author="Ardelune Bürotechnik GmbH")


def lease_contract(path: Path) -> None:
    """Make a contract, without images and without error codes."""
    clauses = {
        "Subject": "The Lessor leaves two printing systems Brosevik LP-200 to the Lessee.",
        "Term": "The agreement begins on the day of delivery and runs for 48 months. It ends without notice.",
        "Rent": "The Lessee shall pay 412.50 euros a month, in advance.",
        "Maintenance": "The Lessor shall answer a call for service within eight working hours.",
        "Liability": "Neither party shall be liable for loss of profit. Liability for intent is not limited.",
        "Termination": "Either party may terminate this agreement for good cause, in writing.",
        "Return": "At the end of the term the Lessee returns the systems complete and in working order.",
        "Governing law": "This agreement is governed by the law of the place where the Lessor has its seat.",
    }
    story: list[Flowable] = [
        title("Lease Agreement"),
        body("between Brosevik Leasing AB (the Lessor) and Office Quarter 9 Cooperative (the Lessee)"),
    ]
    for number, (name, text) in enumerate(clauses.items(), start=1):
        story += section(f"§ {number}  {name}", text, "Changes to this clause need the written form.", PageBreak())
    story.append(body("Signed in two copies. The parties have read every page of this agreement."))
    save(path, story, name="Lease agreement LP-200", author="Brosevik Leasing AB")


def adhesion_paper(path: Path) -> None:
    """Make a paper with two figures."""
    results = [("20 %", 3.1), ("40 %", 4.4), ("60 %", 4.2), ("80 %", 2.6)]
    table = grid([["Relative humidity", "Force"]] + [[label, f"{value} N"] for label, value in results])
    story: list[Flowable] = [
        title("Toner Adhesion on Recycled Paper under Changing Humidity"),
        body("M. Oduya, L. Fernhill. Kestrane Institute for Print Research"),
        *section(
            "Abstract",
            "We measured how strongly toner holds on recycled paper. Adhesion is highest "
            "between 40 and 60 percent humidity and falls by a third above that. Less heat is made up for "
            "by a slower transport, up to a limit that we give.",
        ),
        *section(
            "1  Introduction",
            "Recycled paper takes up water faster than fresh paper. The water cools the nip of the fuser.",
            PageBreak(),
        ),
        *section(
            "2  Method",
            "Sheets rested for 24 hours in a climate chamber. Adhesion was measured by the tape test.",
            figure(exploded_view(77, "Fig. 1  Test rig of the Kestrane Institute"), 11 * cm),
            PageBreak(),
        ),
        *section("3  Results", figure(bar_chart(results, "N"), 11 * cm), table, PageBreak()),
        *section("4  Conclusion", "Keep paper stores between 40 and 60 percent relative humidity."),
        *section("References", "[1] L. Fernhill, Paper and Water, 2019. [2] M. Oduya, Cold Fusing, 2022."),
    ]
    save(path, story, name="Toner Adhesion on Recycled Paper", author="Kestrane Institute")


def firmware_notes(path: Path) -> None:
    """Make release notes: many versions on one page."""
    story: list[Flowable] = [title("Tarnwick C550 Firmware Release Notes"), body("Tarnwick Imaging Ltd.")]
    changes = [
        "Error code C-3412 no longer appears when the machine wakes from sleep in a cold room.",
        "Scanning to a network folder accepts names with umlauts.",
        "Two-sided copies of receipts keep their order.",
        "The page counter survives a power cut during its update.",
    ]
    for number in range(31, 25, -1):
        story += section(f"Version 4.{number}.0", *(f"- {text}" for text in changes[number % 3 :]))
    story.append(body("Known limitation: from Version 4.31.0 calibrate the finisher once, see C-7088."))
    save(path, story, name="Tarnwick C550 Firmware Release Notes", author="Tarnwick Imaging Ltd.")


def halvorn_x900(path: Path) -> None:
    """Encrypted with AES-256: nothing but hash and size can be known of it without the password."""
    rng = random.Random(900)
    story: list[Flowable] = [
        title("Halvorn X900 Parts Catalogue"),
        body("Halvorn Systems BV. Confidential, for service partners only. Edition for Version 3.0."),
        PageBreak(),
    ]
    for number in range(1, 9):
        rows = [
            [f"HV-{rng.randint(10000, 99999)}", f"Item {n} of assembly {number}", str(rng.randint(1, 4))]
            for n in range(1, 15)
        ]
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
    story = [
        title("Tarnwick Service Bulletin 17"),
        *(body("Check the fuser cable for chafing. " * 12) for _ in range(30)),
    ]
    save(path, story, name="Tarnwick Service Bulletin 17", author="Tarnwick Imaging Ltd.")
    whole = path.read_bytes()
    noise = random.Random(17).randbytes(len(whole))
    path.write_bytes(whole[:60] + noise[60 : len(whole) // 2])


def scanned_note(path: Path) -> None:
    """Two pages that are pictures of text and nothing else."""
    rng = random.Random(8)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    for page in (1, 2):
        data = io.BytesIO()
        scanned_page(rng, f"DELIVERY NOTE 20718, page {page}").save(data, "JPEG", quality=55)
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
    """Make all documents."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in DOCUMENTS.items():
        path = folder / name
        make(path)
        print(f"{name:24} {path.stat().st_size / 1024:7.0f} KiB")


if __name__ == "__main__":
    main()
