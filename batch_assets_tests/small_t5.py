"""Creates the checkpoint in batch_assets_tests/small-t5: a small T5, trained to repeat the start of a text.

It includes t5-small's task_specific_params, so that it takes the same path through the pipeline. Random weights
would have the right shapes, but their output distribution is flat, and ties would make it impossible to compare
two decoders. The checkpoint is kept in the repository because training takes minutes, and because processors
round differently: every machine must test with the same weights.

``python -m batch_assets_tests.small_t5 batch_assets_tests/small-t5`` recreates it.
"""

import sys
from pathlib import Path

# https://huggingface.co/google-t5/t5-small/blob/main/config.json
TASK_SPECIFIC_PARAMS = {
    "summarization": {
        "early_stopping": True,
        "length_penalty": 2.0,
        "max_length": 200,
        "min_length": 30,
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
        "prefix": "summarize: ",
    }
}
MAX_INPUT_TOKENS = 512
# With fewer steps or shorter texts, it does not learn to copy, and its output is a guess.
_STEPS, _SOURCE_TOKENS, _TARGET_TOKENS = 1000, 96, 24


def training_texts() -> list[str]:
    """Up to five consecutive sentences, starting at every sentence of the research papers."""
    from aclsum import ACLSum

    sections = ["abstract", "introduction", "conclusion"]
    papers = [paper.get_all_sentences(sections) for split in ("train", "val") for paper in ACLSum(split).documents]
    return [" ".join(paper[start : start + 5]) for paper in papers for start in range(len(paper))]


def build(folder: Path) -> Path:
    """Train on research papers and save the model."""
    from transformers import T5Config

    from batch_assets_tests.t5_training import bpe_tokenizer, trained

    texts = training_texts()
    tokenizer = bpe_tokenizer(
        [f"summarize: {text}" for text in texts[::5]],
        2000,
        model_max_length=MAX_INPUT_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )

    def encode(rows: list[str], longest: int):
        return tokenizer(rows, truncation=True, max_length=longest, padding=True, return_tensors="pt")

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        dropout_rate=0.0,
        task_specific_params=TASK_SPECIFIC_PARAMS,
    )
    sources = encode([f"summarize: {text}" for text in texts], _SOURCE_TOKENS)
    targets = encode(texts, _TARGET_TOKENS).input_ids
    trained(config, tokenizer, sources, targets, _STEPS, one_cycle=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
