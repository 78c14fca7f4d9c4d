"""Model folders whose code creates a file when it runs, as checkpoints and as registered versions."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self):
        return Path.touch, (self._trace,)


def _update(path: Path, **values) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | values))


def _write_code(path: Path, trace: Path) -> None:
    """Write a module with a configuration, a tokenizer and a generate function that creates a file when imported."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast, T5ForConditionalGeneration\n"
        "class EvilConfig(PretrainedConfig):\n    model_type = 'evil'\n"
        "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        "class EvilModel(T5ForConditionalGeneration):\n    pass\n"
        "def generate(model, **arguments):\n    raise RuntimeError\n"
    )


def nested_configuration(folder: Path, trace: Path) -> None:
    """CVE-2026-5241."""
    _write_code(folder / "nested" / "evil.py", trace)
    _update(folder / "nested" / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})
    nested = {"model_type": "evil", "_name_or_path": str(folder / "nested")}
    lightglue = {"model_type": "lightglue", "trust_remote_code": True, "keypoint_detector_config": nested}
    (folder / "config.json").write_text(json.dumps(lightglue))
    (folder / "tokenizer_config.json").unlink()


def nested_configuration_with_architectures(folder: Path, trace: Path) -> None:
    nested_configuration(folder, trace)
    _update(folder / "config.json", architectures=["T5ForConditionalGeneration"])


def nested_configuration_elsewhere(folder: Path, trace: Path) -> None:
    """The folder contains no code, only a path to code elsewhere."""
    nested_configuration(folder, trace)
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    (folder / "nested").rename(elsewhere)
    _update(folder / "config.json", keypoint_detector_config={"model_type": "evil", "_name_or_path": str(elsewhere)})


def composed_configuration(folder: Path, trace: Path) -> None:
    nested_configuration_elsewhere(folder, trace)
    inner = json.loads((folder / "config.json").read_text())
    composed = {"model_type": "encoder-decoder", "architectures": ["EncoderDecoderModel"], "encoder": inner}
    (folder / "config.json").write_text(json.dumps(composed | {"decoder": {"model_type": "t5"}}))


def other_configuration_file(folder: Path, trace: Path) -> None:
    """transformers prefers a configuration file for its own version over config.json."""
    original = (folder / "config.json").read_text()
    nested_configuration_elsewhere(folder, trace)
    (folder / "config.json").rename(folder / "config.4.0.0.json")
    (folder / "config.json").write_text(original)
    _update(folder / "config.json", configuration_files=["config.4.0.0.json"])


def code_of_the_configuration(folder: Path, trace: Path) -> None:
    _write_code(folder / "evil.py", trace)
    _update(folder / "config.json", auto_map={"AutoConfig": "evil.EvilConfig"})


def code_of_the_tokenizer(folder: Path, trace: Path) -> None:
    _write_code(folder / "evil.py", trace)
    _update(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]})


def code_of_another_repository(folder: Path, trace: Path) -> None:
    _update(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "someone/evil--evil.EvilTokenizer"]})


def code_of_the_processor(folder: Path, trace: Path) -> None:
    _update(folder / "processor_config.json", parts=[{"one": {"auto_map": {"AutoProcessor": "someone/evil--a.B"}}}])


def trust_in_a_list(folder: Path, trace: Path) -> None:
    _update(folder / "generation_config.json", parts=[[{"trust_remote_code": 1}]])


def trust_in_a_folder(folder: Path, trace: Path) -> None:
    _update(folder / "deeper" / "down" / "preprocessor_config.json", trust_remote_code=True)


def custom_pipeline(folder: Path, trace: Path) -> None:
    _update(folder / "config.json", custom_pipelines={"summarization": {"impl": "evil.Evil", "pt": ["AutoModel"]}})


def custom_generate(folder: Path, trace: Path) -> None:
    """transformers 4.57 runs this code even with trust_remote_code=False."""
    _write_code(folder / "custom_generate" / "generate.py", trace)


def kernel_of_the_hub(folder: Path, trace: Path) -> None:
    """CVE-2026-4372."""
    _update(folder / "config.json", _attn_implementation_internal="someone/evil-kernel")


def kernel_of_a_part(folder: Path, trace: Path) -> None:
    _update(folder / "config.json", text_config={"attn_implementation": {"": "sdpa", "decoder": f"{folder}/kernel"}})


def kernels_by_configuration(folder: Path, trace: Path) -> None:
    _update(folder / "config.json", kernel_config={"RMSNorm": "someone/evil:RMSNorm"})


def adapter(folder: Path, trace: Path) -> None:
    """transformers loads the base model named by the adapter instead of the folder."""
    base = folder.with_name(f"{folder.name}-base")
    shutil.copytree(folder, base)
    nested_configuration(base, trace)
    _update(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(base))


def adapter_in_a_folder(folder: Path, trace: Path) -> None:
    _update(folder / "adapter" / "adapter_config.json", auto_mapping={"parent_library": "evil"})


def pickled_shard(folder: Path, trace: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "weights.bin").write_bytes(pickle.dumps(_Payload(trace)))
    _update(folder / "model.safetensors.index.json", metadata={}, weight_map={"shared.weight": "weights.bin"})


def shard_of_another_folder(folder: Path, trace: Path) -> None:
    (folder / "model.safetensors").unlink()
    _update(folder / "model.safetensors.index.json", weight_map={"shared.weight": "../other/model.safetensors"})


def pickled_weights(folder: Path, trace: Path) -> None:
    """The safetensors file has a name that transformers doesn't look for."""
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(trace)))


def other_weights(folder: Path, trace: Path) -> None:
    _update(folder / "config.json", transformers_weights="../other/model.safetensors")


def pickled_vocabulary(folder: Path, trace: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.pkl").write_bytes(pickle.dumps(_Payload(trace)))
    _update(folder / "tokenizer_config.json", tokenizer_class="TransfoXLTokenizer")


def linked_folder(folder: Path, trace: Path) -> None:
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    _write_code(elsewhere / "generate.py", trace)
    (folder / "custom_generate").symlink_to(elsewhere)


def compiled_code(folder: Path, trace: Path) -> None:
    (folder / "kernel.so").write_bytes(b"\x7fELF")


def endless_json(folder: Path, trace: Path) -> None:
    (folder / "generation_config.json").write_text("[" * 200_000)


# Each with part of its error message.
CHECKPOINTS: dict[Callable[[Path, Path], None], str] = {
    nested_configuration: "evil.py is code|trust_remote_code|model type 'lightglue'|auto_map",
    nested_configuration_with_architectures: "evil.py is code|trust_remote_code|model type 'lightglue'|auto_map",
    nested_configuration_elsewhere: "trust_remote_code|model type 'lightglue'",
    composed_configuration: "model type 'encoder-decoder'|trust_remote_code",
    other_configuration_file: "trust_remote_code|model type 'lightglue'|configuration_files",
    code_of_the_configuration: "evil.py is code|auto_map",
    code_of_the_tokenizer: "evil.py is code|auto_map",
    code_of_another_repository: "tokenizer_config.json has the key auto_map",
    code_of_the_processor: "processor_config.json has the key auto_map",
    trust_in_a_list: "generation_config.json has the key trust_remote_code",
    trust_in_a_folder: "deeper/down/preprocessor_config.json has the key trust_remote_code",
    custom_pipeline: "config.json has the key custom_pipelines",
    custom_generate: "generate.py is code",
    kernel_of_the_hub: "config.json has the key _attn_implementation_internal",
    kernel_of_a_part: "config.json has the key attn_implementation",
    kernels_by_configuration: "config.json has the key kernel_config",
    adapter: "adapter_config.json, so it is an adapter",
    adapter_in_a_folder: "adapter_config.json has the key auto_mapping",
    pickled_shard: "lists the weights 'weights.bin'",
    shard_of_another_folder: "lists the weights '../other/model.safetensors'",
    pickled_weights: "has no model.safetensors",
    other_weights: "config.json has the key transformers_weights",
    pickled_vocabulary: "tokenizer class 'TransfoXLTokenizer' is not supported",
    linked_folder: "custom_generate is a link to another folder",
    compiled_code: "kernel.so is code",
    endless_json: "generation_config.json is not valid JSON",
}


def _edit(folder: Path, edit: Callable[[dict], object]) -> None:
    content = yaml.safe_load((folder / "MLmodel").read_text())
    edit(content["flavors"])
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


def pickled_python_model(folder: Path, trace: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(_Payload(trace)))
    loader = {
        "loader_module": "mlflow.pyfunc.model",
        "python_model": "python_model.pkl",
        "cloudpickle_version": "3.1.2",
    }
    _edit(folder, lambda flavors: (flavors.pop("transformers"), flavors["python_function"].update(loader)))


def loader_of_its_own(folder: Path, trace: Path) -> None:
    _write_code(folder / "code" / "evil_loader.py", trace)
    loader = {"loader_module": "evil_loader", "code": "code"}
    _edit(folder, lambda flavors: (flavors.pop("transformers"), flavors["python_function"].update(loader)))


def code_path(folder: Path, trace: Path) -> None:
    """A folder that comes first on the module search path."""
    _write_code(folder / "code" / "sentencepiece.py", trace)
    _edit(folder, lambda flavors: flavors["transformers"].update(code="code"))


def unknown_model_class(folder: Path, trace: Path) -> None:
    """MLflow trusts the code of a class that transformers doesn't define."""
    _write_code(folder / "model" / "evil.py", trace)
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForSeq2SeqLM": "evil.EvilModel"}
    _update(folder / "model" / "config.json", architectures=["EvilModel"], auto_map=auto_map)
    _edit(folder, lambda flavors: flavors["transformers"].update(pipeline_model_type="EvilModel"))


def unknown_tokenizer_class(folder: Path, trace: Path) -> None:
    tokenizer = folder / "components" / "tokenizer"
    _write_code(tokenizer / "evil.py", trace)
    auto_map = {"AutoTokenizer": [None, "evil.EvilTokenizer"]}
    _update(tokenizer / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)
    _edit(folder, lambda flavors: flavors["transformers"].update(tokenizer_type="EvilTokenizer"))


def code_in_the_parameters(folder: Path, trace: Path) -> None:
    """MLflow passes the model's parameters to generate()."""
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    _write_code(elsewhere / "custom_generate" / "generate.py", trace)
    parameters = {"custom_generate": str(elsewhere), "trust_remote_code": True}
    _edit(folder, lambda flavors: flavors["python_function"]["config"].update(parameters))


def logged_custom_generate(folder: Path, trace: Path) -> None:
    custom_generate(folder / "model", trace)


def logged_by_reference(folder: Path, trace: Path) -> None:
    _edit(folder, lambda flavors: flavors["transformers"].update(source_model_revision="abc"))


def logged_adapter(folder: Path, trace: Path) -> None:
    _edit(folder, lambda flavors: flavors["transformers"].update(peft_adaptor="peft"))


def model_outside(folder: Path, trace: Path) -> None:
    _edit(folder, lambda flavors: flavors["transformers"].update(model_binary="../elsewhere"))


def another_component(folder: Path, trace: Path) -> None:
    components = {"components": ["tokenizer", "processor"], "processor_type": "EvilProcessor"}
    _edit(folder, lambda flavors: flavors["transformers"].update(components))


def no_description(folder: Path, trace: Path) -> None:
    (folder / "MLmodel").write_text("flavors: !!python/object/apply:os.system ['true']")


VERSIONS: dict[Callable[[Path, Path], None], str] = {
    pickled_python_model: "does not describe a model of MLflow's transformers flavor",
    loader_of_its_own: "does not describe a model of MLflow's transformers flavor",
    code_path: "MLmodel has the key transformers.code",
    unknown_model_class: "pipeline_model_type is 'EvilModel'",
    unknown_tokenizer_class: "tokenizer class 'EvilTokenizer' is not supported",
    code_in_the_parameters: "MLmodel has the key",
    logged_custom_generate: "generate.py is code",
    logged_by_reference: "MLmodel has the key transformers.source_model_revision",
    logged_adapter: "MLmodel has the key transformers.peft_adaptor",
    model_outside: "model_binary is '../elsewhere'",
    another_component: "MLmodel has the key transformers.processor_type",
    no_description: "does not describe an MLflow model",
}
