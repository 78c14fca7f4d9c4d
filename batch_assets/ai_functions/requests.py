"""Requests to endpoints, independent of the protocol, and the error of ai functions."""

import hashlib
import json
from dataclasses import dataclass

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.errors import BatchAssetsError


class AiFunctionError(BatchAssetsError):
    """An ai function failed; the message starts with the name of the error if it has one."""


@dataclass(frozen=True)
class Request:
    """One request; equal requests are sent once.

    Args:
        content: the prompt, or the input of a served model as JSON.
        parameters: parameters in addition to the endpoint's, as a JSON object.
        schema: JSON schema that the answer must match, as text; None for any text.
        response_format: ``response_format`` for a chat server, as JSON; None to derive it from the schema.
    """

    content: str
    parameters: str = "{}"
    schema: str | None = None
    response_format: str | None = None

    def hash(self, endpoint: Endpoint) -> str:
        """Return the SHA-256 of everything that determines the answer."""
        parts = [*endpoint.identity, self.content, self.parameters, self.schema, self.response_format]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
