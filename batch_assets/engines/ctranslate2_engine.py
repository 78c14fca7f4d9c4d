"""The engine for encoder-decoders on CPU: CTranslate2, with the converted model that is stored with the version."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from batch_assets.engines.contract import Completion, ScoringModel
from batch_assets.engines.conversion import TOKENIZER_FILE, Conversion
from batch_assets.engines.encoding import Encoded, generate_each, standalone_tokenizer
from batch_assets.engines.spec import EngineSpec
from batch_assets.engines.transformers_engine import load_logged

# Generation settings that the conversion carries over, or that don't change the output.
_KNOWN_SETTINGS = {
    "bos_token_id", "decoder_start_token_id", "do_sample", "early_stopping", "eos_token_id", "length_penalty",
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size", "num_beams",
    "pad_token_id", "renormalize_logits", "transformers_version", "use_cache",
}  # fmt: skip


class CTranslate2Engine:
    """Runs the converted model of one registered version.

    Args:
        model: the version; ``engine_path`` is the folder of the converted model.
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

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Generate one text for each document. An error affects only its row."""
        budget = self._batch_tokens if batch_tokens is None else batch_tokens
        return generate_each(documents, self._encoding, budget, self._generate)

    def _generate(self, batch: list[Encoded]) -> list[Completion]:
        results = self._translator.translate_batch(
            [[self._tokenizer.id_to_token(token) for token in request.ids] for request in batch],
            max_input_length=0,  # inputs are already truncated
            **self._conversion.decoding,
        )
        completions = []
        for request, result in zip(batch, results, strict=True):
            ids = [self._tokenizer.token_to_id(token) for token in result.hypotheses[0]]
            ended = len(ids) < self._conversion.decoding["max_decoding_length"]
            completions.append(self._encoding.decode(request, ids, ended=ended))
        return completions


def convert(model: ScoringModel, folder: Path) -> Conversion:
    """Convert a model into a folder. If it can't give the reference's output, return only the reason."""
    import ctranslate2

    pipeline, wanted = load_logged(model)
    refusal = unsupported_generation(wanted)
    if refusal is not None:
        return Conversion(refusal=refusal)
    with tempfile.TemporaryDirectory() as checkpoint:
        pipeline.model.save_pretrained(checkpoint)
        pipeline.tokenizer.save_pretrained(checkpoint)
        try:
            converter = ctranslate2.converters.TransformersConverter(checkpoint)
            converter.convert(str(folder), quantization=model.dtype, force=True)
        except ValueError as error:
            return Conversion(refusal=str(error).splitlines()[0])
    standalone_tokenizer(pipeline.tokenizer, True).save(str(folder / TOKENIZER_FILE))
    # transformers counts the decoder's start token, CTranslate2 doesn't.
    longest = wanted.max_new_tokens or wanted.max_length - 1
    shortest = wanted.min_new_tokens or max((wanted.min_length or 0) - 1, 0)
    return Conversion(
        prefix=pipeline.prefix or "",
        decoding={
            "beam_size": wanted.num_beams,
            "length_penalty": wanted.length_penalty,
            "no_repeat_ngram_size": wanted.no_repeat_ngram_size or 0,
            "min_decoding_length": shortest,
            "max_decoding_length": longest,
        },
    )


def unsupported_generation(wanted: Any) -> str | None:
    """Why CTranslate2 would not give the output of transformers for a generation configuration. None if it would."""
    import transformers

    defaults = transformers.GenerationConfig().to_dict()
    changed = {key for key, value in wanted.to_dict().items() if value != defaults.get(key) and not key.startswith("_")}
    unknown = sorted(changed - _KNOWN_SETTINGS)
    if unknown:
        return f"its generation configuration sets {', '.join(unknown)}"
    if wanted.do_sample:
        return "it samples"
    if wanted.num_beams == 1:
        return None
    if wanted.early_stopping is not True:
        return "its beam search continues after enough hypotheses have ended (early_stopping is not true)"
    bans = (wanted.min_length or 0) > 1 or wanted.min_new_tokens or wanted.no_repeat_ngram_size
    # CTranslate2 always normalizes scores after banning tokens; transformers does so only on request.
    if bans and not wanted.renormalize_logits:
        return "its beam search bans tokens without normalizing the other scores (renormalize_logits is not true)"
    return None


def _refuses(model: ScoringModel) -> str | None:
    return None if model.template is None else "the model is not an encoder-decoder"


SPEC = EngineSpec(
    "ctranslate2", package="ctranslate2", load=CTranslate2Engine, refuses=_refuses, convert=convert, auto_order=1
)
