"""The protocols of endpoints: how each kind's requests are built and its responses are read."""

import json
import re
from typing import Any

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.requests import Request
from batch_assets.ai_functions.schemas import schema_violation
from batch_assets.engines.contract import Completion, ErrorClass

_FENCED = re.compile(r"\s*```[a-z]*\n(.*)\n```\s*", re.DOTALL)


class UnreadableResponseError(Exception):
    """The response doesn't follow the protocol; a retry may succeed."""


class SchemaError(Exception):
    """The answer doesn't match the required schema; ``tokens`` is its usage, None if the server doesn't report it."""

    def __init__(self, message: str, tokens: int | None = None) -> None:
        super().__init__(message)
        self.tokens = tokens


class ChatCompletions:
    """The chat completions protocol of OpenAI: https://platform.openai.com/docs/api-reference/chat."""

    path = "/chat/completions"

    def body(self, endpoint: Endpoint, request: Request) -> dict[str, Any]:
        """Return the JSON body of a request."""
        content = request.content
        parameters = endpoint.parameters | json.loads(request.parameters)
        if request.schema is not None and endpoint.enforces_schema:
            if request.response_format is not None:
                parameters["response_format"] = json.loads(request.response_format)
            else:
                schema = {"name": "answer", "strict": True, "schema": json.loads(request.schema)}
                parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.schema is not None:
            content += f"\n\nAnswer with JSON alone, as this JSON schema says: {request.schema}"
        return {**parameters, "model": endpoint.model, "messages": [{"role": "user", "content": content}]}

    def read(self, endpoint: Endpoint, request: Request, response: bytes) -> Completion:
        """Return the answer in a response.

        Raises:
            UnreadableResponseError: the response is not a chat completion.
            SchemaError: the answer doesn't match the request's schema.
        """
        try:
            content: dict[str, Any] = json.loads(response)
            choice = content["choices"][0]
            text = _text(choice["message"]["content"])
            reason = choice.get("finish_reason")
            usage = content.get("usage") or {}
            details = {
                "finish_reason": reason,
                "input_tokens": _count(usage.get("prompt_tokens")),
                "output_tokens": _count(usage.get("completion_tokens")),
                "model": content.get("model") or endpoint.model,
            }
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UnreadableResponseError(f"the response is not a chat completion ({type(error).__name__})") from error
        if reason == "content_filter":
            message = "[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint's content filter withheld the answer"
            return Completion.failed(message, ErrorClass.DOCUMENT, **details)
        if text is None:
            why = f"finish reason {reason}" if reason else "no reason given"
            message = f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the answer has no text ({why})"
            return Completion.failed(message, ErrorClass.MODEL, **details)
        if request.schema is not None:
            fenced = _FENCED.fullmatch(text)
            text = fenced[1] if fenced else text
            problem = schema_violation(text, request.schema)
            if problem is not None:
                cut = " (it was cut off: raise max_tokens)" if reason == "length" else ""
                tokens_used = (details["input_tokens"] or 0) + (details["output_tokens"] or 0)
                raise SchemaError(problem + cut, tokens_used or None)
        return Completion(text, None, **details)


class Invocations:
    """``/invocations`` of a served MLflow model: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/."""

    path = "/invocations"

    def body(self, endpoint: Endpoint, request: Request) -> dict[str, Any]:
        """Return the JSON body of a request: a single text, or the fields of a struct as columns."""
        value = json.loads(request.content)
        body = {"dataframe_records": [value]} if isinstance(value, dict) else {"inputs": [value]}
        parameters = endpoint.parameters | json.loads(request.parameters)
        return body | ({"params": parameters} if parameters else {})

    def read(self, endpoint: Endpoint, request: Request, response: bytes) -> Completion:
        """Return the prediction in a response as text: a string unchanged, anything else as JSON.

        Raises:
            UnreadableResponseError: the response has no prediction.
            SchemaError: the prediction doesn't match the request's schema.
        """
        try:
            predictions = json.loads(response)["predictions"]
            prediction = predictions[0] if isinstance(predictions, list) else predictions
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UnreadableResponseError(f"the response has no predictions ({type(error).__name__})") from error
        if prediction is None:
            message = "[AI_FUNCTION_INVALID_HTTP_RESPONSE] the prediction is null"
            return Completion.failed(message, ErrorClass.MODEL, model=endpoint.model)
        text = prediction if isinstance(prediction, str) else json.dumps(prediction)
        problem = None if request.schema is None else schema_violation(text, request.schema)
        if problem is not None:
            raise SchemaError(problem)
        return Completion(text, model=endpoint.model)


def _text(content: Any) -> str | None:
    """Return the text of a message, which some servers send in parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return None if content is None else str(content)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


PROTOCOLS: dict[str, ChatCompletions | Invocations] = {"openai": ChatCompletions(), "mlflow": Invocations()}
