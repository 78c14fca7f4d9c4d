"""Print docs/settings.md from the settings themselves."""

from batch_assets.settings import Settings, variables


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read by `make run`, `make ui` and the Dagster code location. Made by",
        "`python tools/settings_page.py > docs/settings.md`; a test holds the two together.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, variable in variables().items():
        field = Settings.model_fields[name]
        default = "" if field.default is None else f"`{str(field.default)!r}`".replace("'", "")
        lines.append(f"| `{variable}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
