"""The endpoints of a run; the embedded one starts on first use and stops when the run ends."""

from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from batch_assets.ai_functions.embedded import EMBEDDED_MODEL_NAME, EMBEDDED_PARAMETERS, EmbeddedServer
from batch_assets.ai_functions.endpoints import Endpoint, check_key, configured_endpoint


class EndpointsResource(dg.ConfigurableResource[Any]):
    """Endpoints by name: those in ``file`` and the embedded one."""

    file: str | None = None
    _server: Any = PrivateAttr(default=None)

    def describe(self, name: str) -> dict[str, Any]:
        """Model and parameters of an endpoint, without starting it.

        Raises:
            BatchAssetsError: there is no endpoint with that name.
        """
        endpoint = configured_endpoint(self.file, name)
        if endpoint is None:
            return {"model": EMBEDDED_MODEL_NAME, "parameters": EMBEDDED_PARAMETERS}
        return {"model": endpoint.model, "parameters": endpoint.parameters}

    def get(self, name: str) -> Endpoint:
        """An endpoint that is ready for requests.

        Raises:
            BatchAssetsError: no endpoint has that name, its key is not set, or the embedded one does not start.
        """
        endpoint = configured_endpoint(self.file, name)
        if endpoint is not None:
            check_key(endpoint)
            return endpoint
        if self._server is None:
            self._server = EmbeddedServer(name)
        started: Endpoint = self._server.start()
        return started

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Stop the embedded server when the run ends."""
        self.stop()

    def stop(self) -> None:
        """Stop the embedded server if it was started."""
        if self._server is not None:
            self._server.stop()
            self._server = None
