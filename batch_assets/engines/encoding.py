"""Convert documents to token ids and back, like the logged pipeline."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from batch_assets.engines.contract import Completion, ErrorClass, RowError, ScoringModel

_PLAIN_MARKUP = re.compile(r"\[/?[A-Z_]{2,}\]|<</?[A-Z_]{2,}>>|<\|[^<>|]+\|>|<(?:start|end)_of_turn>")

# Tokenizers without a limit report 10^30.
_NO_LIMIT = 10**9
# A row counts as at least this many tokens in the budget of a batch.
_MIN_ROW_TOKENS = 64

# Replacements that transformers makes with clean_up_tokenization_spaces:
# https://huggingface.co/docs/transformers/main_classes/tokenizer#transformers.PreTrainedTokenizerFast.decode
_CLEANED_UP = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve",
    " 're": "'re",
}  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """An encoded document; ``place`` is its index among the documents given to the engine."""

    place: int
    ids: list[int]
    truncated: bool
    document: str


class Encoding:
    """Encodes documents for one model, and decodes its answers.

    Args:
        model: the version.
        tokenizer: from ``standalone_tokenizer``.
        prefix: text that an encoder-decoder expects before a document.
        longest_input: maximum input tokens of a decoder-only model.
        end_ids: tokens that end an answer.
    """

    def __init__(
        self, model: ScoringModel, tokenizer: Tokenizer, prefix: str, longest_input: int, end_ids: Sequence[int]
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._longest_input = longest_input
        self._end_ids = set(end_ids)
        self._markup = {tokenizer.token_to_id(token) for token in model.markup}
        self._prompt_markup_count = self._count_markup(tokenizer.encode(prefix + model.render("")).ids)

    def encode(self, place: int, document: str) -> Encoded:
        """Encode a document, truncated to the model's limit.

        Raises:
            ValueError: the prompt alone exceeds the limit, or the document has markup in a spelling that only the
                tokenizer recognizes.
        """
        encoded = self._tokenizer.encode(self._prefix + self._model.render(document))
        ids, truncated = encoded.ids, bool(encoded.overflowing)
        if self._model.template is not None and len(ids) > self._longest_input:
            ids, truncated = self._cut(document, ids), True
        if self._count_markup(ids) > self._prompt_markup_count:
            raise ValueError(RowError.MARKUP.value)
        return Encoded(place, ids, truncated, document)

    def _cut(self, document: str, ids: list[int]) -> list[int]:
        """Truncate the document, but not the instructions and the markup around it."""
        while len(ids) > self._longest_input:
            offsets = self._tokenizer.encode(document, add_special_tokens=False).offsets
            if not offsets:
                raise ValueError(RowError.LONG_PROMPT.format(tokens=self._longest_input))
            document = document[: offsets[max(len(offsets) - (len(ids) - self._longest_input), 0)][0]]
            ids = self._tokenizer.encode(self._model.render(document)).ids
        return ids

    def _count_markup(self, ids: Sequence[int]) -> int:
        return sum(token in self._markup for token in ids)

    def decode(self, request: Encoded, ids: Sequence[int], *, ended: bool = False) -> Completion:
        """Decode the answer to a request.

        Args:
            request: the request.
            ids: generated tokens; the first end token and those after it are ignored.
            ended: whether the answer is complete even without an end token.
        """
        end = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        text = self._tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
        if self._model.template is not None:
            for spaced, closed in _CLEANED_UP.items():
                text = text.replace(spaced, closed)
        return Completion(
            text=text.strip(),  # as MLflow's pyfunc does
            finish_reason="stop" if ended or end is not None else "length",
            input_tokens=len(request.ids),
            output_tokens=len(ids) if end is None else end,
            input_truncated=request.truncated,
        )


def standalone_tokenizer(tokenizer: Any, is_encoder_decoder: bool) -> Tokenizer:
    """Extract a pipeline's tokenizer, which starts a hundred times faster without transformers.

    It truncates the input of an encoder-decoder like the pipeline, and doesn't pad.
    """
    standalone = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    standalone.no_padding()
    standalone.no_truncation()
    if is_encoder_decoder and tokenizer.model_max_length < _NO_LIMIT:
        standalone.enable_truncation(tokenizer.model_max_length, direction=tokenizer.truncation_side)
    return standalone


def markup_in(folder: Path, template: str | None) -> tuple[str, ...]:
    """Texts that a saved tokenizer treats as markup, such as ``<|im_end|>``.

    Reads the files directly, because importing transformers takes ten times as long.

    Args:
        folder: written by ``save_pretrained()`` of a fast tokenizer.
        template: template of the prompt, None if there is none.
    """
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_added_tokens_decoder().values()
    found = {token.content for token in tokens}
    # Some models write the markup of their prompts in plain text: [INST], <<SYS>>.
    found |= set(_PLAIN_MARKUP.findall(template or ""))
    unknown = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("unk_token")
    if isinstance(unknown, dict):  # saved with its settings
        unknown = unknown["content"]
    return tuple(sorted(token for token in found - {unknown} if len(token.strip()) > 1))


def input_limit(tokenizer: Any, config: Any, template: str | None, max_new_tokens: int | None) -> int:
    """Maximum input tokens of a model.

    Args:
        tokenizer: tokenizer of the model.
        config: configuration of the model.
        template: template of the prompt, None for an encoder-decoder.
        max_new_tokens: tokens that a decoder-only model needs for its answer.
    """
    if template is None:
        return int(min(tokenizer.model_max_length, _NO_LIMIT))
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or _NO_LIMIT)
    return int(limit - (max_new_tokens or 0)) if limit < _NO_LIMIT else _NO_LIMIT


def batch_by_tokens(requests: list[Encoded], budget: int) -> Iterator[list[Encoded]]:
    """Batch requests of similar length, shortest first, up to ``budget`` padded tokens or a single row."""
    batch: list[Encoded] = []
    for request in sorted(requests, key=lambda request: len(request.ids)):
        # Even a short document needs room for its answer.
        if batch and max(len(request.ids), _MIN_ROW_TOKENS) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def encode_each(
    documents: Sequence[str], encoding: Encoding, requests: list[Encoded]
) -> Iterator[tuple[int, Completion]]:
    """Encode documents into ``requests``. Yields the index and the error of those that can't be encoded."""
    for place, document in enumerate(documents):
        try:
            requests.append(encoding.encode(place, document))
        except Exception as error:  # one bad text must not stop the other rows
            yield place, failed(error, ErrorClass.DOCUMENT)


def generate_each(
    documents: Sequence[str],
    encoding: Encoding,
    batch_tokens: int,
    generate: Callable[[list[Encoded]], list[Completion]],
) -> Iterator[tuple[int, Completion]]:
    """Generate batch by batch, shortest documents first. An error affects only its row.

    Args:
        documents: the texts.
        encoding: encoding of the model.
        batch_tokens: padded tokens per batch.
        generate: answers one batch; if it fails, the batch is halved until the failing row is alone.
    """

    def generate_or_split(batch: list[Encoded]) -> list[Completion]:
        try:
            return generate(batch)
        except Exception as error:  # splitting finds the failing row, which gets the message
            if len(batch) == 1:
                return [failed(error)]
        middle = len(batch) // 2
        return generate_or_split(batch[:middle]) + generate_or_split(batch[middle:])

    requests: list[Encoded] = []
    yield from encode_each(documents, encoding, requests)
    for batch in batch_by_tokens(requests, batch_tokens):
        for request, completion in zip(batch, generate_or_split(batch), strict=True):
            yield request.place, completion


def failed(error: Exception, error_class: ErrorClass = ErrorClass.SERVICE) -> Completion:
    """The completion of a row that failed in an engine."""
    message = RowError.FAILED.format(type=type(error).__name__, error=error)[:1000]
    return Completion.failed(message, error_class, input_truncated=False)
