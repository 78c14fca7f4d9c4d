"""The engine for encoder-decoders on CPU: CTranslate2, from what ``models.conversion`` has kept with the version."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from batch_assets.inference.contract import Generation, ScoringModel
from batch_assets.inference.conversion import CTranslate2Conversion
from batch_assets.inference.encoding import Encoded, Encoding, generate_each, input_limit
from batch_assets.inference.quiet import quiet_transformers

# Documents that are generated at once. With beams 4, batches of 8 were as fast as larger ones on one core.
_BATCH_ROWS = 8


class CTranslate2Engine:
    """Loads the conversion of one registered version.

    Args:
        model: the version; ``engine_path`` is the folder of its conversion.
        threads: CPU threads to use.
    """

    def __init__(self, model: ScoringModel, threads: int) -> None:
        import ctranslate2
        import transformers

        quiet_transformers()
        folder = Path(model.engine_path)
        self._conversion = CTranslate2Conversion.read(folder)
        self._translator = ctranslate2.Translator(
            str(folder), device="cpu", compute_type=model.dtype, inter_threads=1, intra_threads=threads
        )
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(Path(model.path) / "components" / "tokenizer"), trust_remote_code=False
        )
        self._encoding = Encoding(
            model, self._tokenizer, self._conversion.prefix, input_limit(self._tokenizer, None, model), end_ids=()
        )

    def generate(self, documents: Sequence[str]) -> list[Generation]:
        """Write one text for each document, in the same order; an error stays with its row."""
        return generate_each(documents, self._encoding, _by_length, self._generate)

    def _generate(self, batch: list[Encoded]) -> list[Generation]:
        results = self._translator.translate_batch(
            [self._tokenizer.convert_ids_to_tokens(request.ids) for request in batch],
            max_input_length=0,  # inputs are cut already
            **self._conversion.decoding,
        )
        generations = []
        for request, result in zip(batch, results, strict=True):
            ids = self._tokenizer.convert_tokens_to_ids(result.hypotheses[0])
            ended = len(ids) < self._conversion.decoding["max_decoding_length"]
            generations.append(self._encoding.decode(request, ids, ended=ended))
        return generations


def _by_length(requests: list[Encoded]) -> Iterator[list[Encoded]]:
    ordered = sorted(requests, key=lambda request: len(request.ids))
    yield from (ordered[start : start + _BATCH_ROWS] for start in range(0, len(ordered), _BATCH_ROWS))
