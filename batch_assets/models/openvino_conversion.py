"""Decoder-only models for OpenVINO: what it would write as transformers does, and the conversion by Optimum Intel.

https://huggingface.co/docs/optimum-intel/openvino/export
"""

import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

from batch_assets.inference.contract import ScoringModel
from batch_assets.inference.conversion import TOKENIZER_FILE, Conversion
from batch_assets.inference.encoding import input_limit, standalone_tokenizer
from batch_assets.inference.transformers_engine import end_ids
from batch_assets.models.pipeline import load_logged

# Settings of a generation that the conversion carries over, or that don't change what is written greedily.
_KNOWN_SETTINGS = {
    "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "min_length", "min_new_tokens",
    "pad_token_id", "temperature", "top_k", "top_p", "transformers_version", "use_cache",
}  # fmt: skip


def convert(model: ScoringModel, folder: Path) -> Conversion:
    """Convert into a folder; a conversion that can't give the reference's output only says why."""
    import transformers

    if importlib.util.find_spec("optimum.intel") is None:
        return Conversion(refusal="Optimum Intel, which converts, is not installed")
    pipeline, wanted = load_logged(model)
    plain = transformers.GenerationConfig().to_dict()
    other = {key for key, value in wanted.to_dict().items() if value != plain.get(key) and not key.startswith("_")}
    unknown = sorted(other - _KNOWN_SETTINGS)
    if unknown:
        return Conversion(refusal=f"its generation sets {', '.join(unknown)}")
    longest = wanted.max_new_tokens
    if not longest:
        return Conversion(refusal="its generation doesn't set max_new_tokens")
    with tempfile.TemporaryDirectory() as checkpoint:
        pipeline.model.save_pretrained(checkpoint)
        refusal = _export(checkpoint, folder, model.dtype == "int8")
    if refusal is not None:
        return Conversion(refusal=refusal)
    standalone_tokenizer(pipeline.tokenizer, False).save(str(folder / TOKENIZER_FILE))
    return Conversion(
        longest_input=input_limit(pipeline.tokenizer, pipeline.model.config, model.template, longest),
        end_ids=end_ids(wanted),
        decoding={"max_new_tokens": longest, "min_new_tokens": wanted.min_new_tokens or 0},
    )


def _export(checkpoint: str, folder: Path, in_8_bits: bool) -> str | None:
    """Write OpenVINO's files; why that can't be done, None if it was."""
    # NNCF prints tables of what it compresses; Optimum asks the hub about folders.
    for name in ("nncf", "optimum"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from optimum.intel import OVModelForCausalLM

    try:
        with warnings.catch_warnings():
            # Tracing warns of every branch in the model's code.
            warnings.simplefilter("ignore")
            exported = OVModelForCausalLM.from_pretrained(
                checkpoint, export=True, compile=False, load_in_8bit=in_8_bits, trust_remote_code=False
            )
    except ValueError as error:  # an architecture that it doesn't know
        return str(error).splitlines()[0]
    exported.save_pretrained(folder)
    return None
