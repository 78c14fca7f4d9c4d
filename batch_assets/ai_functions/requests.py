"""What is asked of an endpoint, and what comes back, whatever the endpoint speaks."""

import hashlib
import json
from dataclasses import dataclass

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.errors import BatchAssetsError

# In the message of a row whose endpoint was out of reach, which is not the row's fault.
NO_ANSWER = "gave no answer within"


class AiFunctionError(BatchAssetsError):
    """An ai function can't go on; the message starts with the error's name where it has one."""


@dataclass(frozen=True)
class Request:
    """One request; equal ones are asked once.

    Args:
        content: the prompt, or the input of a served model as JSON.
        parameters: parameters beyond the endpoint's, as a JSON object.
        schema: JSON schema that the answer must meet, as text; None for any text.
        response_format: how a chat server is told, as JSON, where the schema alone doesn't say.
    """

    content: str
    parameters: str = "{}"
    schema: str | None = None
    response_format: str | None = None

    def hash(self, endpoint: Endpoint) -> str:
        """SHA-256 of everything that decides what the answer will be."""
        parts = [*endpoint.identity, self.content, self.parameters, self.schema, self.response_format]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came back for one request: a text, or an error.

    ``is_final`` says whether asking again would give the same. ``seconds`` is how long the attempt took that ended it.
    """

    text: str | None
    error_message: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None
    is_final: bool = True
    seconds: float | None = None
