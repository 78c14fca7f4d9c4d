from pathlib import Path

from tools.settings_page import page

ROOT = Path(__file__).parent.parent


def test_the_page_of_settings_is_what_the_settings_say():
    assert (ROOT / "docs" / "settings.md").read_text() == page()


def test_every_setting_that_the_readme_names_exists():
    import re

    from batch_assets.settings import variables

    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"BATCH_ASSETS_[A-Z]+(?:_[A-Z]+)*\b(?!\*)", file.read_text()):
            assert name in variables().values(), f"{name} in {file.name}"
