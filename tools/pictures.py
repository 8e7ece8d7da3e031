#!/usr/bin/env python3
"""Draw explain.svg and web.png in docs/images from the real output of the commands.

uv run --group dev tools/pictures.py RUN

RUN is a run on the sample. The script needs chromium, chromedriver and npm. tools/diagrams.py draws the diagrams.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import crepe_dist
from crepe_dist.errors import escape_controls
from crepe_dist.formatting import percent
from crepe_dist.reports.explanation import show

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
TEXTS = (
    "the directer turns a thin story into a moving, funny film",
    "lol @sarah im so tierd :( goin to bed now",
    "this camera is easy to use and the picture qualty is great",
)
SHOWN_CLASSES = 3  # A line has no space for more classes.
# Rich's SVG frame loads a font from the network. Without it, the browser uses its own monospaced font.
FRAME = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    draw_explanation(sys.argv[1])
    draw_page(sys.argv[1])


def draw_explanation(run: str) -> None:
    predictor = crepe_dist.load(run)
    console = Console(record=True, width=90, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for text in TEXTS:
        explanation = predictor.explain(text)
        ranking = explanation.prediction.ranking[:SHOWN_CLASSES]
        console.print(
            "   ".join(f"{escape_controls(label)} {percent(share)}" for label, share in ranking), highlight=False
        )
        show(explanation, console)
        console.print()
    svg = console.export_svg(title="crepe predict --explain", theme=DIMMED_MONOKAI, code_format=FRAME)
    (FOLDER / "explain.svg").write_text(svg, encoding="utf-8")


def draw_page(run: str) -> None:
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    # Without these paths, Selenium would search for a browser in the network.
    options.binary_location, driver = shutil.which("chromium") or "", shutil.which("chromedriver")
    with tempfile.TemporaryDirectory() as folder, webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        export = ["crepe_dist", "export", run, "--format", "web", "--out", folder]
        subprocess.run([sys.executable, "-m", *export], check=True, stdout=subprocess.DEVNULL)
        size = {"width": 820, "height": 620, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((Path(folder) / "index.html").as_uri())
        browser.find_element(By.ID, "text").send_keys(TEXTS[0])
        bar = "document.querySelector('#bars .first i')"
        drawn = f"return {bar} && !document.getAnimations().length"
        WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(drawn))
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
    picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(FOLDER / "web.png", optimize=True)


if __name__ == "__main__":
    main()
