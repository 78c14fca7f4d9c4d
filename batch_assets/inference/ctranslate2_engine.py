"""The engine for encoder-decoders on CPU: CTranslate2, from what was converted and kept with the version."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from batch_assets.inference.contract import Generation, ScoringModel
from batch_assets.inference.conversion import TOKENIZER_FILE, Conversion
from batch_assets.inference.encoding import Encoded, generate_each


class CTranslate2Engine:
    """Loads the conversion of one registered version.

    Args:
        model: the version; ``engine_path`` is the folder of its conversion.
        threads: CPU threads to use.
    """

    def __init__(self, model: ScoringModel, threads: int) -> None:
        import ctranslate2

        folder = Path(model.engine_path)
        self._batch_tokens = model.batch_tokens
        self._conversion = Conversion.read(folder)
        self._translator = ctranslate2.Translator(
            str(folder), device="cpu", compute_type=model.dtype, inter_threads=1, intra_threads=threads
        )
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._encoding = self._conversion.encoding(model, self._tokenizer)

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Generation]]:
        """Write one text for each document; an error stays with its row."""
        budget = self._batch_tokens if batch_tokens is None else batch_tokens
        return generate_each(documents, self._encoding, budget, self._generate)

    def _generate(self, batch: list[Encoded]) -> list[Generation]:
        results = self._translator.translate_batch(
            [[self._tokenizer.id_to_token(token) for token in request.ids] for request in batch],
            max_input_length=0,  # inputs are cut already
            **self._conversion.decoding,
        )
        generations = []
        for request, result in zip(batch, results, strict=True):
            ids = [self._tokenizer.token_to_id(token) for token in result.hypotheses[0]]
            ended = len(ids) < self._conversion.decoding["max_decoding_length"]
            generations.append(self._encoding.decode(request, ids, ended=ended))
        return generations
