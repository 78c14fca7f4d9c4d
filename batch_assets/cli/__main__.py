"""Run batch-assets with ``python -m batch_assets.cli``."""

from batch_assets.cli import main

main()
