"""Support tickets, and the checkpoint in batch_assets_tests/ticket-t5: a tiny T5 that classifies them.

``python -m batch_assets_tests.ticket_t5 batch_assets_tests/ticket-t5`` recreates it in about ten seconds.
"""

import random
import sys
from pathlib import Path

LABELS = ("billing", "bug", "question")
_SUBJECTS = {
    "billing": ("Charged twice", "Wrong invoice", "Refund please", "Payment failed"),
    "bug": ("App crashes", "Error on start", "Screen stays black", "Upload broken"),
    "question": ("How to export", "Where is the manual", "Can I change my name", "What does this mean"),
}
_BODIES = {
    "billing": ("my card was charged", "the invoice has the wrong amount", "I want my money back"),
    "bug": ("the app crashes when I save", "an error appears", "it stopped working after the update"),
    "question": ("how do I export my data", "where can I find the settings", "is there a guide"),
}
_STEPS = 400


def tickets(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Tickets with ``ticket_id``, ``subject``, ``body``, ``customer`` and ``category``, one of the labels."""
    chosen = random.Random(seed)
    found = []
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        found.append(
            {
                "ticket_id": f"T{seed}-{number}",
                "subject": chosen.choice(_SUBJECTS[label]),
                "body": f"Hello, {chosen.choice(_BODIES[label])}. Regards, {chosen.choice(('Ann', 'Bo', 'Cy'))}",
                "customer": f"C{number % 4}",
                "category": label,
            }
        )
    return found


def build(folder: Path) -> Path:
    """Train on tickets and save the model."""
    from transformers import T5Config

    from batch_assets_tests.t5_training import bpe_tokenizer, trained

    rows = tickets(600, seed=1)
    texts = [f"{row['subject']}\n\n{row['body']}" for row in rows]
    tokenizer = bpe_tokenizer([*texts, *LABELS * 10], 400, model_max_length=128)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    sources = tokenizer(texts, padding=True, return_tensors="pt")
    targets = tokenizer([row["category"] for row in rows], padding=True, return_tensors="pt").input_ids
    trained(config, tokenizer, sources, targets, _STEPS, one_cycle=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
