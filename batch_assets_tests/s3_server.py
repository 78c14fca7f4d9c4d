"""moto as an S3 server in a separate process: ``python -m batch_assets_tests.s3_server PORT``.

delta-rs holds Python's lock while it waits, so a server in the same process would hang. Also, moto checks whether a key
exists before it writes the key, without a lock: two requests with ``If-None-Match: *`` can both succeed, which real S3
never allows. This server therefore answers one request at a time.
"""

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

if __name__ == "__main__":
    # Switch threads as often as possible, so that race conditions show.
    sys.setswitchinterval(1e-6)
    moto, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with one_at_a_time:
            return list(moto(environ, start_response))

    run_simple("127.0.0.1", int(sys.argv[1]), answer, threaded=True, request_handler=MotoRequestHandler)
