"""`make site`: built without a warning, every link and picture there, read in a browser without a network."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import DESKTOP, PHONE, chromium, resize, until
from bs4 import BeautifulSoup
from spectral_collapse.analysis import claims
from spectral_collapse.notebook import pairs
from spectral_collapse.record import paths

pytestmark = pytest.mark.slow

LOADED = "document.readyState === 'complete' && document.querySelector('article') !== null"
INVISIBLE = "return [...document.images].filter(i => !i.naturalWidth || !i.width).map(i => i.src)"
WORDS = [("jackknife", "docs/api/"), ("papermill", "docs/notebooks"), ("Koopman", "04_sigma")]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built from the checkout as `make site` does, warnings being errors."""
    pytest.importorskip("myst_nb", reason="Sphinx and its extensions are not installed: make site installs them")
    folder = tmp_path_factory.mktemp("site")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECTRAL_COLLAPSE_")}
    arguments = ["-W", "--keep-going", "-q", "-c", "docs", "-d", str(folder / "doctrees"), ".", str(folder / "html")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments],
        cwd=paths.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, BeautifulSoup]:
    """Every page by its address within the site."""
    found = {str(file.relative_to(site)): file.read_text(encoding="utf-8") for file in sorted(site.rglob("*.html"))}
    return {name: BeautifulSoup(text, "html.parser") for name, text in found.items() if "_static" not in name}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        """Requests are not worth a line each."""


@pytest.fixture(scope="module")
def address(site):
    """Where a server on this machine serves the site."""
    handler = functools.partial(Handler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def test_it_has_the_readme_all_guides_notebooks_and_packages(pages):
    guides = {f"docs/{file.stem}.html" for file in (paths.ROOT / "docs").glob("*.md")}
    notebooks = {f"notebooks/{file.stem}.html" for file in pairs.NOTEBOOKS.glob("*.ipynb")}
    reference = {f"docs/api/{name}.html" for name in ("curvature", "sigma", "estimate", "analysis", "record")}
    assert {"index.html", "README.html", "CONTRIBUTING.html", "search.html"} | guides | notebooks | reference <= set(
        pages
    )


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site, pages):
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    broken, loaded, checked = [], [], 0
    for name, page in pages.items():
        for tag in page.find_all(["a", "img", "script", "link", "source", "iframe", "object"]):
            link = urlsplit(tag.get("href") or tag.get("src") or tag.get("data") or "")
            if link.scheme in ("http", "https") or link.netloc:
                loaded += [] if tag.name == "a" else [(name, link.geturl())]
            elif link.scheme in ("", "file"):
                checked += 1
                file = (site / name).parent / unquote(link.path) if link.path else site / name
                target = os.path.relpath(os.path.normpath(file), site)
                known = anchors.get(target)
                if not file.is_file() or (known is not None and link.fragment and unquote(link.fragment) not in known):
                    broken.append((name, link.geturl()))
    assert not broken and not loaded and checked > 1000


def test_claims_have_their_verdicts_and_formulas_stay_as_they_were_written(pages):
    primary, table = pages["docs/results.html"].find_all("table")
    verdicts = [row.find_all("td")[-1].get_text(strip=True) for row in primary.find_all("tr")[1:]]
    assert len(verdicts) == 4 and set(verdicts) <= {"supported", "contradicted"}
    rows = [[cell.get_text(" ", strip=True) for cell in row.find_all("td")] for row in table.find_all("tr")[1:]]
    assert [row[0] for row in rows] == [claim.claim.strip() for claim in claims.read()]
    assert {row[1] for row in rows} <= set(claims.VERDICTS)
    reference = pages["docs/api/sigma.html"].get_text()
    assert "A = Σ v vᵀ over the observed embeddings v ∈ R^m (n_A of them)" in reference
    assert "wishart   log det A and the exact mean" in reference
    assert pages["notebooks/04_sigma.html"].find("math").get_text(strip=True).startswith("A=∑v")


def test_the_outputs_of_notebooks_are_those_that_are_committed(pages):
    assert "live dimensions: 381" in pages["notebooks/04_sigma.html"].get_text()
    for name, page in pages.items():
        if name.startswith("notebooks/"):
            assert page.select(".cell_output img"), name


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_loads_with_its_pictures_fits_the_screen_and_reports_no_error(pages, address, browser, size):
    resize(browser, size)
    for name in pages:
        browser.get(f"{address}/{name}")
        until(browser, LOADED)  # index.html has no article: it leads to a page that has
        assert browser.title, name
        assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")], name
        assert not browser.execute_script(INVISIBLE), name
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0], name


@pytest.mark.parametrize("word, page", WORDS)
def test_search_finds_words_of_guides_notebooks_and_docstrings(address, browser, word, page):
    resize(browser, DESKTOP)
    browser.get(f"{address}/search.html?q={word}")
    browser.get(until(browser, f"""document.querySelector("#search-results li a[href*='{page}']")?.href"""))
    assert word.lower() in browser.find_element("tag name", "article").text.lower()
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_site_without_the_papers_pdf_says_how_to_make_it(site, pages):
    text = pages["docs/results.html"].find("article").get_text()
    typeset = (paths.ROOT / "paper" / "tinystories.pdf").exists()
    assert bool(list(site.glob("_downloads/*/tinystories.pdf"))) == typeset
    assert ("make paper PROFILE=tinystories RECOMPUTE=0" in text) != typeset
