"""Silence transformers, whose output would interrupt our progress messages."""


def quiet_transformers() -> None:
    """Show only errors of transformers, and no progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
