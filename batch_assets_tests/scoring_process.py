"""A separate driver that scores batches, and can be killed halfway by its own workers.

    python -m batch_assets_tests.scoring_process FILE

The file contains the pickled arguments of run().
"""

import os
import pickle
import signal
import sys
import time
from pathlib import Path

from batch_assets.engines.catalog import load_engine
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA
from batch_assets.resources.spark import SparkResource
from batch_assets.scoring.completions import CompletionStore
from batch_assets.scoring.scorer import score_batch


def run(lake, models, seconds, resource, deadline=0, counter=None) -> None:
    """Score batches; a document that starts with "kill" kills its worker.

    Args:
        lake: the lake.
        models: the key of each batch, with the model that scores it.
        seconds: minimum time per document.
        resource: fields of the SparkResource.
        deadline: number of documents a worker scores before it kills the driver; 0 never kills it.
        counter: file that receives a byte for each document passed to an engine.
    """
    from pyspark import cloudpickle

    driver = os.getpid()

    class Slow:
        def __init__(self, model, threads):
            self._engine, self._scored = load_engine(model, threads), 0

        def stream(self, documents, batch_tokens=None):
            for place, document in enumerate(documents):
                if counter is not None:
                    with open(counter, "ab", buffering=0) as file:  # noqa: PTH123 - a single write is atomic
                        file.write(b".")
                # Simulates a slower, larger model.
                time.sleep(seconds)
                if document.startswith("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                for _, generation in self._engine.stream([document], 0):
                    yield place, generation
                self._scored += 1
                if self._scored == deadline:
                    os.kill(driver, signal.SIGKILL)
                    signal.pause()

    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    spark = SparkResource(**resource).session
    for batch, model in models.items():
        store = CompletionStore.of(lake, BATCH_INFERENCE, batch, model.fingerprint)
        output = lake.open(BATCH_INFERENCE)
        scored = score_batch(
            spark,
            lake.open(PROD_DATA),
            output,
            batch,
            model,
            store,
            {},
            lambda line: print(line, flush=True),
            load=Slow,
        )
        loads = scored.workers.loads if scored.workers else 0
        print(f"scored {scored.scored} of {scored.rows}, model loaded {loads} times")


if __name__ == "__main__":
    run(**pickle.loads(Path(sys.argv[1]).read_bytes()))
