"""``python -m batch_assets.cli`` is the command batch-assets."""

from batch_assets.cli import main

main()
