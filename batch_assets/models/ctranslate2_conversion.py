"""Encoder-decoders for CTranslate2: what it would write as transformers does, and the conversion."""

import tempfile
from pathlib import Path
from typing import Any

from batch_assets.inference.contract import ScoringModel
from batch_assets.inference.conversion import TOKENIZER_FILE, Conversion
from batch_assets.inference.encoding import standalone_tokenizer
from batch_assets.models.pipeline import load_logged

# Settings of a generation that the conversion carries over, or that don't change what is written.
_KNOWN_SETTINGS = {
    "bos_token_id", "decoder_start_token_id", "do_sample", "early_stopping", "eos_token_id", "length_penalty",
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size", "num_beams",
    "pad_token_id", "renormalize_logits", "transformers_version", "use_cache",
}  # fmt: skip


def convert(model: ScoringModel, folder: Path) -> Conversion:
    """Convert into a folder; a conversion that can't give the reference's output only says why."""
    import ctranslate2

    pipeline, wanted = load_logged(model)
    refusal = generation_difference(wanted)
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
    # transformers counts the token that a decoder starts with, CTranslate2 doesn't.
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


def generation_difference(wanted: Any) -> str | None:
    """Why CTranslate2 would write something else than transformers with a generation configuration."""
    import transformers

    plain = transformers.GenerationConfig().to_dict()
    other = {key for key, value in wanted.to_dict().items() if value != plain.get(key) and not key.startswith("_")}
    unknown = sorted(other - _KNOWN_SETTINGS)
    if unknown:
        return f"its generation sets {', '.join(unknown)}"
    if wanted.do_sample:
        return "it samples"
    if wanted.num_beams == 1:
        return None
    if wanted.early_stopping is not True:
        return "its beam search goes on after enough hypotheses have ended (early_stopping is not true)"
    bans = (wanted.min_length or 0) > 1 or wanted.min_new_tokens or wanted.no_repeat_ngram_size
    # CTranslate2 normalizes scores after tokens were banned; transformers does so only if told.
    if bans and not wanted.renormalize_logits:
        return "its beam search bans tokens without normalizing the other scores (renormalize_logits is not true)"
    return None
