"""Tell somebody that a run has failed for good."""

import json
import shlex
import subprocess
from typing import Any

from batch_assets.errors import BatchAssetsError


def tell(alert: str, what: dict[str, Any]) -> None:
    """Post to an address, or run a command with the facts as JSON on its standard input.

    Raises:
        BatchAssetsError: it could not be told; the message says nothing of the address or the command, which may hold
            a secret.
    """
    import httpx

    try:
        if alert.startswith(("http://", "https://")):
            status = httpx.post(alert, json=what, timeout=30).status_code
            problem = None if httpx.codes.is_success(status) else f"the address answered with HTTP status {status}"
        else:
            run = subprocess.run(
                shlex.split(alert), input=json.dumps(what), text=True, check=False, timeout=60, capture_output=True
            )
            problem = f"the command ended with exit status {run.returncode}" if run.returncode else None
    except (httpx.HTTPError, httpx.InvalidURL, subprocess.SubprocessError, OSError, ValueError) as error:
        problem = type(error).__name__
    if problem is not None:
        raise BatchAssetsError(
            f"nobody was told of the run {what.get('run_id')} that failed: {problem}; mend BATCH_ASSETS_ALERT"
        )
