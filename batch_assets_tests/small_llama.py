"""Creates the checkpoint in batch_assets_tests/small-llama: a small decoder-only model with a chat template.

Like the small T5, it was trained to repeat the start of a text, so that two decoders can be compared, and it is kept
in the repository, so that every machine tests with the same weights. It takes SmolLM2's path through the pipeline:
the same architecture, chat markup and padding.

``python -m batch_assets_tests.small_llama batch_assets_tests/small-llama`` recreates it.
"""

import sys
from pathlib import Path

_START, _END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_INPUT_TOKENS = 512
# Documents of many lengths: with one length, it would learn how far back to look, not where a text begins.
_STEPS, _BATCH, _SOURCE_TOKENS, _TARGET_TOKENS = 2500, 24, (12, 96), 24


def build(folder: Path) -> Path:
    """Train on research papers and save the model."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from batch_assets.tasks.summarization import Summarization
    from batch_assets_tests.small_t5 import training_texts

    texts = training_texts()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", _START, _END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts[::5],
        trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token="<|endoftext|>",
        padding_side="left",
        model_max_length=MAX_INPUT_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )
    task = Summarization()

    def example(text: str, tokens: int) -> tuple[list[int], int]:
        """The token ids of a conversation about the start of a text, and the index where the answer begins."""
        ids = tokenizer(text, truncation=True, max_length=tokens, add_special_tokens=False).input_ids
        messages = [
            {"role": "system", "content": task.system_prompt},
            {"role": "user", "content": task.prompt.replace("{document}", tokenizer.decode(ids))},
        ]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(rendered, add_special_tokens=False).input_ids
        answer = [*ids[:_TARGET_TOKENS], tokenizer.eos_token_id]
        return [*prompt, *answer], len(prompt)

    torch.manual_seed(0)
    order = torch.Generator().manual_seed(0)
    lengths = torch.randint(*_SOURCE_TOKENS, (len(texts),), generator=order).tolist()
    examples = [example(text, tokens) for text, tokens in zip(texts, lengths, strict=True)]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_INPUT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, _STEPS)
    model.train()
    for step in range(_STEPS):
        rows = [examples[row] for row in torch.randint(len(examples), (_BATCH,), generator=order).tolist()]
        longest = max(len(ids) for ids, _ in rows)
        inputs = torch.full((_BATCH, longest), config.pad_token_id)
        mask, labels = torch.zeros_like(inputs), torch.full_like(inputs, -100)
        for place, (ids, answer) in enumerate(rows):
            inputs[place, longest - len(ids) :] = torch.tensor(ids)
            mask[place, longest - len(ids) :] = 1
            labels[place, longest - len(ids) + answer :] = torch.tensor(ids[answer:])
        # Answers are at the end; other positions need no scores over the vocabulary.
        hidden = model.model(input_ids=inputs, attention_mask=mask).last_hidden_state[:, -_TARGET_TOKENS - 2 : -1]
        wanted = labels[:, -_TARGET_TOKENS - 1 :]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), wanted.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step} of {_STEPS}: loss {loss.item():.3f}", flush=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
