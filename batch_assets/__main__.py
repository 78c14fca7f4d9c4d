"""``python -m batch_assets`` is the command batch-assets."""

from batch_assets.cli import main

main()
