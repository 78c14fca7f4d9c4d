"""Documents to token ids and back, as the pipeline that was logged does it."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from batch_assets.inference.contract import Generation, RowError, ScoringModel

_PLAIN_MARKUP = re.compile(r"\[/?[A-Z_]{2,}\]|<</?[A-Z_]{2,}>>|<\|[^<>|]+\|>|<(?:start|end)_of_turn>")

# Tokenizers without a limit say 10^30.
_NO_LIMIT = 10**9
# What a row counts at least in the budget of a batch.
_LEAST_TOKENS = 64

# What transformers does to text that is decoded with clean_up_tokenization_spaces:
# https://huggingface.co/docs/transformers/main_classes/tokenizer#transformers.PreTrainedTokenizerFast.decode
_CLEANED_UP = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve",
    " 're": "'re",
}  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """A document as the model sees it; ``place`` is its place among those that an engine was given."""

    place: int
    ids: list[int]
    truncated: bool
    document: str


class Encoding:
    """Encodes documents for one model, and decodes what it answers.

    Args:
        model: the version.
        tokenizer: from ``standalone_tokenizer``.
        prefix: what an encoder-decoder wants before a document.
        longest_input: tokens of input that a decoder-only model takes.
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
        self._own_markup = self._count_markup(tokenizer.encode(prefix + model.render("")).ids)

    def encode(self, place: int, document: str) -> Encoded:
        """Token ids of a request, cut to what the model takes.

        Raises:
            ValueError: the prompt alone is longer than that, or the document has markup in a spelling that only the
                tokenizer takes for markup.
        """
        encoded = self._tokenizer.encode(self._prefix + self._model.render(document))
        ids, truncated = encoded.ids, bool(encoded.overflowing)
        if self._model.template is not None and len(ids) > self._longest_input:
            ids, truncated = self._cut(document, ids), True
        if self._count_markup(ids) > self._own_markup:
            raise ValueError(RowError.MARKUP.value)
        return Encoded(place, ids, truncated, document)

    def _cut(self, document: str, ids: list[int]) -> list[int]:
        """Cut the document, never the instructions and the markup around it."""
        while len(ids) > self._longest_input:
            offsets = self._tokenizer.encode(document, add_special_tokens=False).offsets
            if not offsets:
                raise ValueError(RowError.LONG_PROMPT.format(tokens=self._longest_input))
            document = document[: offsets[max(len(offsets) - (len(ids) - self._longest_input), 0)][0]]
            ids = self._tokenizer.encode(self._model.render(document)).ids
        return ids

    def _count_markup(self, ids: Sequence[int]) -> int:
        return sum(token in self._markup for token in ids)

    def decode(self, request: Encoded, ids: Sequence[int], *, ended: bool = False) -> Generation:
        """What came of a request.

        Args:
            request: the request.
            ids: generated tokens; from the first that ends an answer on, they don't count.
            ended: whether the answer ended although no such token is among them.
        """
        end = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        text = self._tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
        if self._model.template is not None:
            for spaced, closed in _CLEANED_UP.items():
                text = text.replace(spaced, closed)
        return Generation(
            text=text.strip(),  # as MLflow's pyfunc does
            finish_reason="stop" if ended or end is not None else "length",
            input_tokens=len(request.ids),
            output_tokens=len(ids) if end is None else end,
            input_truncated=request.truncated,
        )


def texts_of(column: pa.Array) -> list[str | None]:
    """Texts of a column in which other writers may have put bytes that are no UTF-8; those become U+FFFD."""
    return [None if raw is None else raw.decode("utf-8", "replace") for raw in column.cast(pa.binary()).to_pylist()]


def standalone_tokenizer(tokenizer: Any, is_encoder_decoder: bool) -> Tokenizer:
    """A pipeline's tokenizer on its own, which starts a hundred times faster than transformers.

    It cuts the input of an encoder-decoder as the pipeline does, and pads nothing.
    """
    standalone = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    standalone.no_padding()
    standalone.no_truncation()
    if is_encoder_decoder and tokenizer.model_max_length < _NO_LIMIT:
        standalone.enable_truncation(tokenizer.model_max_length, direction=tokenizer.truncation_side)
    return standalone


def markup_in(folder: Path, template: str | None) -> tuple[str, ...]:
    """Texts that a saved tokenizer turns into tokens with a meaning of their own, such as ``<|im_end|>``.

    It reads the files itself: importing transformers takes ten times as long.

    Args:
        folder: as the ``save_pretrained()`` of a fast tokenizer writes it.
        template: of the prompt.
    """
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_added_tokens_decoder().values()
    found = {token.content for token in tokens}
    # Some models write the markup of their prompts in plain text: [INST], <<SYS>>.
    found |= set(_PLAIN_MARKUP.findall(template or ""))
    unknown = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("unk_token")
    if isinstance(unknown, dict):  # with its settings
        unknown = unknown["content"]
    return tuple(sorted(token for token in found - {unknown} if len(token.strip()) > 1))


def input_limit(tokenizer: Any, config: Any, template: str | None, max_new_tokens: int | None) -> int:
    """Tokens of input that a model takes, by its tokenizer and its configuration."""
    if template is None:
        return int(min(tokenizer.model_max_length, _NO_LIMIT))
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or _NO_LIMIT)
    return int(limit - (max_new_tokens or 0)) if limit < _NO_LIMIT else _NO_LIMIT


def by_tokens(requests: list[Encoded], budget: int) -> Iterator[list[Encoded]]:
    """Batches of requests of like length, shortest first, of no more than ``budget`` padded tokens or of one row."""
    batch: list[Encoded] = []
    for request in sorted(requests, key=lambda request: len(request.ids)):
        # However short a document is, its answer takes room.
        if batch and max(len(request.ids), _LEAST_TOKENS) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def encode_each(
    documents: Sequence[str], encoding: Encoding, requests: list[Encoded]
) -> Iterator[tuple[int, Generation]]:
    """Encode documents into ``requests``; yields those that can't be, with their errors."""
    for place, document in enumerate(documents):
        try:
            requests.append(encoding.encode(place, document))
        except Exception as error:  # whatever a tokenizer makes of a text, the other rows go on
            yield place, failed(error)


def generate_each(
    documents: Sequence[str],
    encoding: Encoding,
    batch_tokens: int,
    generate: Callable[[list[Encoded]], list[Generation]],
) -> Iterator[tuple[int, Generation]]:
    """Generate batch by batch, shortest first; an error stays with its row.

    Args:
        documents: the texts.
        encoding: of the model.
        batch_tokens: padded tokens of a batch.
        generate: answers one batch; when that fails, the batch is halved until the bad row stands alone.
    """

    def generate_or_split(batch: list[Encoded]) -> list[Generation]:
        try:
            return generate(batch)
        except Exception as error:  # the row that causes it is found and gets the message
            if len(batch) == 1:
                return [failed(error)]
        middle = len(batch) // 2
        return generate_or_split(batch[:middle]) + generate_or_split(batch[middle:])

    requests: list[Encoded] = []
    yield from encode_each(documents, encoding, requests)
    for batch in by_tokens(requests, batch_tokens):
        for request, generation in zip(batch, generate_or_split(batch), strict=True):
            yield request.place, generation


def failed(error: Exception) -> Generation:
    """What becomes of a row that an engine can't answer."""
    return Generation(text=None, error_message=RowError.FAILED.format(type=type(error).__name__, error=error)[:1000])
