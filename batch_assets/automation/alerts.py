"""Send an alert about a failed run that will not be retried."""

import json
import shlex
import subprocess
from typing import Any

from batch_assets.errors import BatchAssetsError


def send_alert(alert: str, details: dict[str, Any]) -> None:
    """Post the details of a failed run as JSON to a URL, or pass them to a command on its standard input.

    Raises:
        BatchAssetsError: the alert was not sent; the message omits the URL or command, which may contain a secret.
    """
    import httpx

    try:
        if alert.startswith(("http://", "https://")):
            status = httpx.post(alert, json=details, timeout=30).status_code
            problem = None if httpx.codes.is_success(status) else f"the URL returned HTTP status {status}"
        else:
            run = subprocess.run(
                shlex.split(alert), input=json.dumps(details), text=True, check=False, timeout=60, capture_output=True
            )
            problem = f"the command failed with exit status {run.returncode}" if run.returncode else None
    except (httpx.HTTPError, httpx.InvalidURL, subprocess.SubprocessError, OSError, ValueError) as error:
        problem = type(error).__name__
    if problem is not None:
        raise BatchAssetsError(
            f"can't send an alert for failed run {details.get('run_id')} ({problem}): check BATCH_ASSETS_ALERT"
        )
