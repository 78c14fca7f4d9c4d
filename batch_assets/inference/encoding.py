"""Documents to token ids and back, as the pipeline that was logged does it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batch_assets.inference.contract import Generation, ScoringModel

# Tokenizers without a limit say 10^30.
_NO_LIMIT = 10**9


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
        tokenizer: its tokenizer.
        prefix: what an encoder-decoder wants before a document.
        longest_input: tokens of input that the model takes.
        end_ids: tokens that end an answer.
    """

    def __init__(
        self, model: ScoringModel, tokenizer: Any, prefix: str, longest_input: int, end_ids: Sequence[int]
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._longest_input = longest_input
        self._end_ids = set(end_ids)

    def encode(self, place: int, document: str) -> Encoded:
        """Token ids of a request, cut to what the model takes.

        Raises:
            ValueError: the prompt alone is longer than that.
        """
        if self._model.template is None:
            text = self._prefix + document
            ids = self._tokenizer(text).input_ids
            if len(ids) <= self._longest_input:
                return Encoded(place, ids, False, document)
            return Encoded(place, self._tokenizer(text, truncation=True).input_ids, True, document)
        ids = self._tokenizer(self._model.render(document)).input_ids
        truncated = len(ids) > self._longest_input
        while len(ids) > self._longest_input:
            # The document is cut, never the instructions and the markup around it.
            offsets = self._tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            keep = max(len(offsets) - (len(ids) - self._longest_input), 0)
            if not offsets:
                raise ValueError(f"the prompt alone is longer than the {self._longest_input} tokens the model takes")
            document = document[: offsets[keep][0]]
            ids = self._tokenizer(self._model.render(document)).input_ids
        return Encoded(place, ids, truncated, document)

    def decode(self, request: Encoded, ids: Sequence[int], *, ended: bool = False) -> Generation:
        """What came of a request.

        Args:
            request: the request.
            ids: generated tokens; from the first that ends an answer on, they don't count.
            ended: whether the answer ended although no such token is among them.
        """
        end = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        text = self._tokenizer.decode(
            ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=self._model.template is not None
        )
        return Generation(
            text=text,
            finish_reason="stop" if ended or end is not None else "length",
            input_tokens=len(request.ids),
            output_tokens=len(ids) if end is None else end,
            input_truncated=request.truncated,
        )


def input_limit(tokenizer: Any, config: Any, model: ScoringModel) -> int:
    """Tokens of input that a model takes, by its tokenizer and its configuration."""
    if model.template is None:
        return int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    limit = min(tokenizer.model_max_length, positions)
    if limit < _NO_LIMIT:
        limit -= int(model.parameters.get("max_new_tokens") or 0)
    return int(limit)


def generate_each(
    documents: Sequence[str],
    encoding: Encoding,
    batches: Callable[[list[Encoded]], Iterator[list[Encoded]]],
    generate: Callable[[list[Encoded]], list[Generation]],
) -> list[Generation]:
    """Generate for every document, in the same order; an error stays with its row.

    Args:
        documents: the texts.
        encoding: of the model.
        batches: puts requests together.
        generate: answers one batch; when that fails, the batch is halved until the bad row stands alone.
    """
    results: list[Generation | None] = [None] * len(documents)
    requests = []
    for place, document in enumerate(documents):
        try:
            requests.append(encoding.encode(place, document))
        except Exception as error:  # whatever a tokenizer makes of a text, the other rows go on
            results[place] = _failed(error)

    def generate_or_split(batch: list[Encoded]) -> list[Generation]:
        try:
            return generate(batch)
        except Exception as error:  # the row that causes it is found and gets the message
            if len(batch) == 1:
                return [_failed(error)]
        middle = len(batch) // 2
        return generate_or_split(batch[:middle]) + generate_or_split(batch[middle:])

    for batch in batches(requests):
        for request, generation in zip(batch, generate_or_split(batch), strict=True):
            results[request.place] = generation
    return [result for result in results if result is not None]


def _failed(error: Exception) -> Generation:
    return Generation(text=None, error_message=f"{type(error).__name__}: {error}"[:1000])
