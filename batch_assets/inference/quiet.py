"""Keep transformers from talking over our own progress."""


def quiet_transformers() -> None:
    """Show errors only, and no progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
