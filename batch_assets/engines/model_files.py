"""Refuse model folders that could run code, before transformers or MLflow opens any of their files.

``trust_remote_code=False`` is not enough. With transformers 4.57, code from a folder can still run in three cases:

- A configuration class that loads a nested configuration uses ``trust_remote_code`` from the JSON file
  (LightGlue, CVE-2026-5241), and the JSON file can name attention kernels (CVE-2026-4372).
- ``from_pretrained`` runs ``custom_generate/generate.py`` of a local folder without confirmation.
- MLflow itself sets ``trust_remote_code=True`` for a model or tokenizer class that transformers doesn't have.

So only known harmless models are accepted: model types, architectures and tokenizer classes must be on the lists below,
and some keys must not appear at any depth of a JSON file.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from batch_assets.errors import BatchAssetsError, raise_if_of_this_machine

# Model types whose configuration class loads no other configuration, with their classes for text generation.
ENCODER_DECODERS: Mapping[str, tuple[str, ...]] = {
    "bart": ("BartForConditionalGeneration",),
    "bigbird_pegasus": ("BigBirdPegasusForConditionalGeneration",),
    "blenderbot": ("BlenderbotForConditionalGeneration",),
    "blenderbot-small": ("BlenderbotSmallForConditionalGeneration",),
    "led": ("LEDForConditionalGeneration",),
    "longt5": ("LongT5ForConditionalGeneration",),
    "m2m_100": ("M2M100ForConditionalGeneration",),
    "marian": ("MarianMTModel",),
    "mbart": ("MBartForConditionalGeneration",),
    "mt5": ("MT5ForConditionalGeneration",),
    "mvp": ("MvpForConditionalGeneration",),
    "nllb-moe": ("NllbMoeForConditionalGeneration",),
    "pegasus": ("PegasusForConditionalGeneration",),
    "pegasus_x": ("PegasusXForConditionalGeneration",),
    "plbart": ("PLBartForConditionalGeneration",),
    "prophetnet": ("ProphetNetForConditionalGeneration",),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration",),
    "t5": ("T5ForConditionalGeneration", "T5WithLMHeadModel"),  # the older name, used in the configuration of t5-3b
    "umt5": ("UMT5ForConditionalGeneration",),
}
DECODERS: Mapping[str, tuple[str, ...]] = {
    "apertus": ("ApertusForCausalLM",),
    "arcee": ("ArceeForCausalLM",),
    "bloom": ("BloomForCausalLM",),
    "codegen": ("CodeGenForCausalLM",),
    "cohere": ("CohereForCausalLM",),
    "cohere2": ("Cohere2ForCausalLM",),
    "deepseek_v2": ("DeepseekV2ForCausalLM",),
    "deepseek_v3": ("DeepseekV3ForCausalLM",),
    "ernie4_5": ("Ernie4_5ForCausalLM",),
    "exaone4": ("Exaone4ForCausalLM",),
    "falcon": ("FalconForCausalLM",),
    "gemma": ("GemmaForCausalLM",),
    "gemma2": ("Gemma2ForCausalLM",),
    "gemma3_text": ("Gemma3ForCausalLM",),
    "glm": ("GlmForCausalLM",),
    "glm4": ("Glm4ForCausalLM",),
    "glm4_moe": ("Glm4MoeForCausalLM",),
    "gpt2": ("GPT2LMHeadModel",),
    "gpt_bigcode": ("GPTBigCodeForCausalLM",),
    "gpt_neo": ("GPTNeoForCausalLM",),
    "gpt_neox": ("GPTNeoXForCausalLM",),
    "gpt_oss": ("GptOssForCausalLM",),
    "gptj": ("GPTJForCausalLM",),
    "granite": ("GraniteForCausalLM",),
    "granitemoe": ("GraniteMoeForCausalLM",),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM",),
    "helium": ("HeliumForCausalLM",),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM",),
    "llama": ("LlamaForCausalLM",),
    "ministral": ("MinistralForCausalLM",),
    "mistral": ("MistralForCausalLM",),
    "mixtral": ("MixtralForCausalLM",),
    "nemotron": ("NemotronForCausalLM",),
    "olmo": ("OlmoForCausalLM",),
    "olmo2": ("Olmo2ForCausalLM",),
    "olmo3": ("Olmo3ForCausalLM",),
    "olmoe": ("OlmoeForCausalLM",),
    "openai-gpt": ("OpenAIGPTLMHeadModel",),
    "opt": ("OPTForCausalLM",),
    "persimmon": ("PersimmonForCausalLM",),
    "phi": ("PhiForCausalLM",),
    "phi3": ("Phi3ForCausalLM",),
    "phimoe": ("PhimoeForCausalLM",),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen2_moe": ("Qwen2MoeForCausalLM",),
    "qwen3": ("Qwen3ForCausalLM",),
    "qwen3_moe": ("Qwen3MoeForCausalLM",),
    "seed_oss": ("SeedOssForCausalLM",),
    "smollm3": ("SmolLM3ForCausalLM",),
    "stablelm": ("StableLmForCausalLM",),
    "starcoder2": ("Starcoder2ForCausalLM",),
    "xglm": ("XGLMForCausalLM",),
}
MODEL_TYPES: Mapping[str, tuple[str, ...]] = {**ENCODER_DECODERS, **DECODERS}

# Tokenizer classes of these models, without the suffix Fast. None of them loads a pickle or another tokenizer.
TOKENIZERS = frozenset(
    f"{name}Tokenizer"
    for name in (
        "Bart", "Barthez", "Bert", "Blenderbot", "BlenderbotSmall", "Bloom", "Camembert", "CodeGen",
        "CodeLlama", "Cohere", "Gemma", "GPT2", "GPTNeoX", "LED", "Llama", "M2M100", "Marian", "MBart",
        "MBart50", "MT5", "Mvp", "Nllb", "OpenAIGPT", "Pegasus", "PLBart", "PreTrained", "ProphetNet",
        "Qwen2", "Roberta", "T5", "XGLM", "XLMRoberta",
    )
)  # fmt: skip

# Keys that make transformers or PEFT load code, a kernel, or files that were not checked.
_FORBIDDEN_KEYS = frozenset(
    {
        "auto_map", "auto_mapping", "configuration_files", "custom_generate", "custom_pipelines", "kernel_config",
        "transformers_weights", "trust_remote_code", "use_kernels",
    }
)  # fmt: skip
_IMPLEMENTATION_KEY = re.compile(r"_?(attn|attention|experts|kernels?)_implementation(_\w+)?")
# Implementations that are part of transformers and PyTorch. For other names, transformers may download a kernel.
_IMPLEMENTATIONS = ("", "eager", "sdpa", "flex_attention")
_CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})

# Keys allowed in an MLmodel file with the transformers flavor, by flavor. Other keys could lead to code:
# code paths, pickled Python models, adapters, models fetched from the hub.
_MLFLOW_KEYS: Mapping[str, frozenset[str]] = {
    "python_function": frozenset({"code", "config", "env", "loader_module", "python_version"}),
    "transformers": frozenset(
        {
            "code", "components", "framework", "instance_type", "model_binary", "pipeline_model_type",
            "source_model_name", "task", "tokenizer_type", "torch_dtype", "transformers_version",
        }
    ),
}  # fmt: skip
_LOADER = "mlflow.transformers"
_PIPELINES = {
    "summarization": "SummarizationPipeline",
    "text2text-generation": "Text2TextGenerationPipeline",
    "text-generation": "TextGenerationPipeline",
    "translation": "TranslationPipeline",
}

_SUPPORTED = "docs/reference/models.md lists what is supported"


def check_model_folder(folder: Path) -> None:
    """Check that a model folder has safetensors weights of a supported model type, and nothing that runs code.

    Args:
        folder: written by ``save_pretrained()``.

    Raises:
        BatchAssetsError: the check failed; the message names the file and the fix.
    """
    if not folder.is_dir():
        raise BatchAssetsError(f"there is no model folder {folder}")
    _check_files(folder)
    _check_model(folder)


def check_mlflow_model(folder: Path) -> None:
    """Check that a logged model is a pipeline of the transformers flavor, and that nothing in it runs code.

    Anyone with write access to the registry can register a version, and MLflow runs code that comes with it.

    Args:
        folder: local folder with the file ``MLmodel``.

    Raises:
        BatchAssetsError: the check failed; the message names the file and the fix.
    """
    file = folder / "MLmodel"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        flavors = {name: dict(flavor) for name, flavor in content["flavors"].items()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise_if_of_this_machine(error)
        raise BatchAssetsError(f"{file} does not describe an MLflow model ({type(error).__name__})") from error
    if flavors.keys() != _MLFLOW_KEYS.keys() or flavors["python_function"].get("loader_module") != _LOADER:
        raise BatchAssetsError(
            f"{file} does not describe a model of MLflow's transformers flavor, and loading it could run code that was "
            "logged with it: log the model by materializing logged_model"
        )
    for name, flavor in flavors.items():
        unknown = sorted(map(str, flavor.keys() - _MLFLOW_KEYS[name]))
        if unknown or flavor.get("code"):
            raise _forbidden_key(file, f"{name}.{unknown[0] if unknown else 'code'}")
    # The parameters in the file reach generate(), which accepts custom_generate and trust_remote_code.
    _check_keys(file, content)
    flavor = flavors["transformers"]
    expected = {
        "components": (["tokenizer"],),
        "instance_type": (_PIPELINES.get(str(flavor.get("task"))),),
        "model_binary": ("model",),
        "pipeline_model_type": tuple(name for names in MODEL_TYPES.values() for name in names),
    }
    for key, allowed in expected.items():
        if flavor.get(key) not in allowed:
            raise BatchAssetsError(f"{file}: {key} is {flavor.get(key)!r}, which is not supported; {_SUPPORTED}")
    _check_tokenizer_class(file, flavor.get("tokenizer_type"))
    _check_files(folder)
    _check_model(folder / "model")


def _check_model(folder: Path) -> None:
    """Check that a folder contains a complete, supported model. Its files must have been checked before."""
    if (folder / "adapter_config.json").exists():
        raise BatchAssetsError(
            f"the model folder {folder} has adapter_config.json, so it is an adapter for another model: merge the "
            "two with merge_and_unload(), and save the result with save_pretrained()"
        )
    if not (folder / "config.json").is_file():
        raise BatchAssetsError(f"the model folder {folder} has no config.json: save the model with save_pretrained()")
    _check_architecture(folder)
    _check_weights(folder)


def _check_files(folder: Path) -> None:
    """Check every file below a folder: no code, no links to other folders, no forbidden keys in JSON files."""
    for parent, names, files in os.walk(folder):
        for name in names:
            if (path := Path(parent, name)).is_symlink():
                raise BatchAssetsError(f"{path} is a link to another folder: replace it with a copy, or remove it")
        for path in (Path(parent, name) for name in files):
            suffix = path.suffix.lower()
            if suffix in _CODE_SUFFIXES:
                raise BatchAssetsError(
                    f"{path} is code, which a model folder must not contain: move it out of the model folder"
                )
            if suffix == ".json":
                _check_keys(path, _without_vocabulary(path, _read_json(path)))


def _check_keys(path: Path, content: Any) -> None:
    """Check the keys of a file at every depth."""
    for key, value in _entries(content):
        if key in _FORBIDDEN_KEYS:
            raise _forbidden_key(path, key)
        if key == "model_type" and not (isinstance(value, str) and value in MODEL_TYPES):
            raise BatchAssetsError(f"{path}: the model type {value!r} is not supported; {_SUPPORTED}")
        if key in ("tokenizer_class", "slow_tokenizer_class"):
            _check_tokenizer_class(path, value)
        if _IMPLEMENTATION_KEY.fullmatch(str(key)) and not _is_built_in(value):
            raise _forbidden_key(path, key)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BatchAssetsError(f"{path} is not valid JSON ({type(error).__name__}: {error})") from error


def _entries(content: Any) -> Iterator[tuple[Any, Any]]:
    pending = [content]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield from part.items()
            pending += part.values()
        elif isinstance(part, list):
            pending += part


def _without_vocabulary(path: Path, content: Any) -> Any:
    """The content of a JSON file without a tokenizer's vocabulary, whose keys are tokens."""
    if path.name in ("vocab.json", "added_tokens.json") and _is_vocabulary(content):
        return {}
    if path.name == "tokenizer.json" and isinstance(content, dict) and isinstance(content.get("model"), dict):
        model = content["model"]
        if _is_vocabulary(model.get("vocab")):
            return {**content, "model": {key: value for key, value in model.items() if key != "vocab"}}
    return content


def _is_built_in(implementation: Any) -> bool:
    """Whether a value names only built-in implementations. A dictionary names one for each part of a model."""
    if isinstance(implementation, dict):
        return all(_is_built_in(value) for value in implementation.values())
    return implementation is None or isinstance(implementation, bool) or implementation in _IMPLEMENTATIONS


def _is_vocabulary(content: Any) -> bool:
    return isinstance(content, dict) and all(type(value) is int for value in content.values())


def _check_tokenizer_class(path: Path, name: Any) -> None:
    if name is not None and not (isinstance(name, str) and name.removesuffix("Fast") in TOKENIZERS):
        raise BatchAssetsError(f"{path}: the tokenizer class {name!r} is not supported; {_SUPPORTED}")


def _check_architecture(folder: Path) -> None:
    path = folder / "config.json"
    config = _read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BatchAssetsError(f"{path} has no model_type: save the model with save_pretrained()")
    kind, named = config["model_type"], config.get("architectures")
    if not isinstance(named, list) or not named:
        raise BatchAssetsError(f"{path} has no architectures: save the model with save_pretrained()")
    wrong = [name for name in named if name not in MODEL_TYPES[kind]]
    if wrong:
        raise BatchAssetsError(
            f"{path}: a model of type {kind} with the architecture {wrong[0]!r} is not supported (it must be "
            f"{' or '.join(MODEL_TYPES[kind])}); {_SUPPORTED}"
        )


def _check_weights(folder: Path) -> None:
    """Check that all weights that transformers reads are safetensors files; pickled weights can run code."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return
    if not index.is_file():
        raise BatchAssetsError(
            f"the model folder {folder} has no model.safetensors (pickled weights can run code and are refused): "
            "save the model with save_pretrained(safe_serialization=True)"
        )
    content = _read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise BatchAssetsError(f"{index} has no weight_map: save the model with save_pretrained()")
    for name in sorted({str(name) for name in shards.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BatchAssetsError(f"{index} lists the weights {name!r}: only safetensors files next to it are read")
        if not (folder / name).is_file():
            raise BatchAssetsError(f"the model folder {folder} lacks {name}, which {index.name} lists: copy it there")


def _forbidden_key(path: Path, key: str) -> BatchAssetsError:
    return BatchAssetsError(
        f"{path} has the key {key}, which can make a model run its own code, and that is never allowed: use "
        "another model, or remove the key if the model works without it"
    )
