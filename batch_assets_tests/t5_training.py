"""How the small T5 checkpoints of the tests are trained."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

_RATE, _BATCH = 1e-2, 32


def bpe_tokenizer(texts: list[str], size: int, **settings: Any) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with a vocabulary of some size, learned from texts."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.NFKC()
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **settings
    )


def trained(
    config: T5Config, tokenizer: PreTrainedTokenizerFast, sources: Any, targets: Any, steps: int, *, one_cycle: bool
) -> T5ForConditionalGeneration:
    """A model trained to turn encoded sources into target ids.

    Args:
        config: sizes of the model.
        tokenizer: for its padding token, which the loss ignores.
        sources: input ids and attention mask, one row per example.
        targets: ids of the wanted texts, one row per example.
        steps: number of batches.
        one_cycle: whether the learning rate first rises and then falls, which longer trainings need.
    """
    import torch

    labels = targets.masked_fill(targets == tokenizer.pad_token_id, -100)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps) if one_cycle else None
    order = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(labels), (_BATCH,), generator=order)
        model(
            input_ids=sources.input_ids[rows], attention_mask=sources.attention_mask[rows], labels=labels[rows]
        ).loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad()
    return model.eval()
