"""Take screenshots of the Dagster UI on the configured home, for the README: ``make screenshots``."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tools.dagster_ui import graphql, served

IMAGES = Path(__file__).parent.parent / "docs" / "images"
_MILLISECONDS = 60_000
_GRAPH, _METADATA = {"width": 1600, "height": 1000}, {"width": 1600, "height": 1240}
# Dagster's own color is so pale that the edges would be invisible in a scaled-down picture.
_DARKER_EDGES = ":root, body, body * { --color-lineage-edge: #7b839a !important; }"


@contextmanager
def opened(size: Mapping[str, int] = _GRAPH) -> Iterator[Page]:
    """Open a page in the installed browser, with Dagster's navigation collapsed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "install a browser first: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": size["width"], "height": size["height"]})
        page.set_default_timeout(_MILLISECONDS)
        expect.set_options(timeout=_MILLISECONDS)
        page.add_init_script(
            "localStorage['large-screen-nav-open'] = 'false'; localStorage['dagster-nav-collapsed'] = 'true'"
        )
        try:
            yield page
        finally:
            browser.close()


def edges(url: str) -> set[tuple[str, str]]:
    """Dagster's dependencies between assets, as pairs of upstream and downstream."""
    nodes = graphql(url, "{assetNodes{assetKey{path} dependencyKeys{path}}}")["assetNodes"]
    return {
        ("/".join(upstream["path"]), "/".join(node["assetKey"]["path"]))
        for node in nodes
        for upstream in node["dependencyKeys"]
    }


def show_graph(page: Page, url: str) -> None:
    """Show the whole graph with all groups open, and wait until it is drawn and has stopped moving."""
    page.goto(f"{url}/asset-groups", wait_until="networkidle")
    drawn = page.locator("svg path[marker-end]")
    # A key that is pressed before the groups are drawn opens nothing.
    expect(drawn).not_to_have_count(0)
    page.keyboard.press("Alt+KeyE")
    expect(drawn).to_have_count(len(edges(url)))
    # The groups stay open, and the page now loads with the states of the assets.
    page.reload(wait_until="networkidle")
    expect(drawn).to_have_count(len(edges(url)))
    # Hide the list of groups. The graph uses the extra space when it is drawn again.
    page.get_by_placeholder("Jump to").locator("xpath=following::button[1]").click()
    page.keyboard.press("Alt+KeyE")
    expect(drawn).not_to_have_count(len(edges(url)))
    page.keyboard.press("Alt+KeyE")
    expect(drawn).to_have_count(len(edges(url)))
    page.locator("svg:has(path[marker-end])").element_handle().wait_for_element_state("stable")


def show_batch(page: Page, url: str, asset: str, batch: str) -> None:
    """Show the last materialization of a batch with its metadata."""
    page.goto(f"{url}/assets/{asset}?view=partitions&partition={batch}", wait_until="networkidle")
    expect(page.get_by_text("delta_version").first).to_be_visible()


def show_text(page: Page, label: str) -> None:
    """Open a long metadata text of the page, which Dagster shows after a click."""
    page.get_by_role("row").filter(has_text=label).get_by_text("Show Markdown").first.click()
    dialog = page.get_by_role("dialog")
    dialog.locator("table, img").first.wait_for()
    dialog.element_handle().wait_for_element_state("stable")


def launch(page: Page, url: str, asset: str) -> None:
    """Materialize all batches of an asset in the UI."""
    page.goto(f"{url}/assets/{asset}", wait_until="networkidle")
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.get_by_role("button", name="Launch").last.click()
    dialog.wait_for(state="hidden")


def main() -> None:
    """Take the screenshots."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    # Nothing must start and show as running in the screenshots.
    with served({**os.environ, "BATCH_ASSETS_SENSORS": "false"}) as url:
        with opened(_GRAPH) as page:
            show_graph(page, url)
            page.add_style_tag(content=_DARKER_EDGES)
            page.screenshot(path=IMAGES / "graph.png")
        query = '{assetNodeOrError(assetKey: {path: ["batch_inference"]}){... on AssetNode{partitionKeys}}}'
        batch = graphql(url, query)["assetNodeOrError"]["partitionKeys"][0]
        with opened(_METADATA) as page:
            show_batch(page, url, "batch_inference", batch)
            page.screenshot(path=IMAGES / "materialization.png")
            show_text(page, "sample")
            page.get_by_role("dialog").screenshot(path=IMAGES / "sample.png")
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
