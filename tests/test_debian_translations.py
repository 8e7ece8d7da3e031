"""benchmarks/debian_translations.py on a handmade index, and with apt on a repository in a folder."""

from __future__ import annotations

import csv
import hashlib
import importlib
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import run
from tests.needs import needs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPT = BENCHMARKS / "debian_translations.py"
LONG = "{0}: Zeichenketten nach Häufigkeit ordnen"
TRANSLATED = f"""Description-de: {LONG}
 Der erste Absatz ist zwei
 Zeilen lang.
 .
 Eigenschaften:
  * der erste Punkt, der auf der
    nächsten Zeile endet
  * der zweite, kürzere Punkt
"""


@pytest.fixture
def translations(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("debian_translations")


@pytest.fixture
def indices(tmp_path):
    """Indices of a repository: twelve sources of two packages each in three sections."""
    names = [f"{kind}{source}" for source in range(12) for kind in ("tool", "lib")]
    about = {name: ("utils" if name[0] == "t" else "libs") if name != "lib3" else "rare" for name in names}
    packages = "".join(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nSection: {section}\nSource: tool{name.strip('tolib')} (1)\n"
        f"Description: {name} in English\nFilename: {name}.deb\nSize: 1\nSHA256: {64 * '0'}\n\n"
        for name, section in about.items()
    )
    (tmp_path / "Packages").write_text(packages)
    translated = "".join(f"Package: {name}\nDescription-md5: {32 * '0'}\n{TRANSLATED}\n" for name in names)
    (tmp_path / "Translation-de").write_text("".join(translated.replace("{0}", "Programm")))
    (tmp_path / "Translation-el").write_text("Package: tool0\nDescription-el: Ένα πρόγραμμα για κείμενα\n\n")
    return tmp_path


def test_a_description_is_cut_into_paragraphs_and_items(translations):
    assert translations.cut(TRANSLATED.partition(": ")[2]) == [
        LONG,
        "Der erste Absatz ist zwei Zeilen lang.",
        "Eigenschaften:",
        "der erste Punkt, der auf der nächsten Zeile endet",
        "der zweite, kürzere Punkt",
    ]
    assert translations.cut("") == []


@pytest.mark.parametrize("paragraphs", [False, True])
def test_everything_about_a_source_is_in_one_split(translations, indices, paragraphs):
    targets = [(language, indices / f"Translation-{language}") for language in ("de", "el")]
    rows = translations.table([indices / "Packages"], targets, 2, paragraphs)
    assert set(rows["label"]) == {"utils", "libs"}, "the two largest sections"
    assert set(rows["language"]) == {"de", "el"}
    assert len(rows) == 23 * (4 if paragraphs else 1) + 1
    assert (rows["text"] == "Ένα πρόγραμμα για κείμενα").sum() == 1
    assert "Eigenschaften:" not in set(rows["text"])
    places = defaultdict(set)
    for package, place in zip(rows["package"], rows["split"]):
        places[package.strip("tolib")].add(place)
    assert all(len(each) == 1 for each in places.values())
    assert len(set.union(*places.values())) > 1


def test_splits_have_their_shares_and_do_not_move(translations):
    found = [translations.split(f"source{number}") for number in range(4000)]
    assert found.count("test") / 4000 == pytest.approx(translations.TEST, abs=0.02)
    assert found.count("validation") / 4000 == pytest.approx(translations.VALIDATION, abs=0.02)
    assert [translations.split(name) for name in ("bash", "glibc", "apt")] == ["train", "validation", "train"]


@needs("apt-get")
def test_apt_fetches_every_language_that_a_release_offers(indices, monkeypatch):
    """Of a repository in a folder, so without a network; the system's own sources are left out."""
    place = indices / "dists" / "stable"
    files = {"main/binary-all/Packages": indices / "Packages", "main/binary-amd64/Packages": indices / "Packages"}
    files |= {f"main/i18n/{name}": indices / name for name in ("Translation-de", "Translation-el")}
    for name, file in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(file.read_bytes())
    lines = [f" {hashlib.sha256((place / n).read_bytes()).hexdigest()} {(place / n).stat().st_size} {n}" for n in files]
    release = ["Suite: stable", "Codename: stable", "Components: main", "Architectures: all amd64", "SHA256:", *lines]
    (place / "Release").write_text("\n".join([*release, ""]))
    _only_source(indices, monkeypatch, f"file:{indices}")
    flags = ("--lists", "lists", "--sections", "3", "--paragraphs")
    printed = run([sys.executable, str(SCRIPT), "out", *flags], indices)
    assert printed.startswith("97 rows")
    assert printed.endswith("24 packages, 2 languages, 3 classes\n")
    with (indices / "out" / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert set(rows[0]) == {"label", "language", "package", "text"}


@needs("apt-get")
def test_without_a_network(tmp_path, monkeypatch):
    _only_source(tmp_path, monkeypatch, "http://127.0.0.1:1")
    said = run([sys.executable, str(SCRIPT), "out", "--lists", "lists"], tmp_path, code=1)
    assert [line[:7] for line in said.splitlines()] == ["error: ", "  why: ", "  do:  "]
    assert "apt could not fetch its lists" in said
    assert "Could not connect" in said


def test_without_apt(indices, monkeypatch):
    monkeypatch.setenv("PATH", str(indices))
    said = run([sys.executable, str(SCRIPT), "out"], indices, code=1)
    assert said.splitlines()[0] == "error: apt-get was not found"
    assert len(said.splitlines()) == 3


def _only_source(folder, monkeypatch, place):
    (folder / "sources.list").write_text(f"deb [trusted=yes] {place} stable main\n")
    settings = f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "-";\nAcquire::Retries "0";\n'
    (folder / "apt.conf").write_text(settings + 'Acquire::Languages "none";\n')
    monkeypatch.setenv("APT_CONFIG", str(folder / "apt.conf"))
