"""How the measurements of a lake grow with the number of batches; see tools/size.py."""

import json
import os

import pytest

from tools.size import PER_LAKE, growth, measured, table

# Numbers of batches, documents per batch, and how much faster than the work a measurement may grow.
SIZES = [int(size) for size in os.environ.get("SIZE_BATCHES", "10 100 1000").split()]
ROWS = int(os.environ.get("SIZE_ROWS", "1000"))
SLACK = 1.5


@pytest.mark.proof
def test_each_batch_is_one_commit_and_one_file_per_table_at_any_number_of_batches(home):
    small, large = measured(home, None, [2, 6], rows=5)
    assert [each["documents"] for each in (small, large)] == [10, 30]
    # Two tables; each measurement adds two versions by adding and removing a batch.
    assert [each["data files"] for each in (small, large)] == [4, 13]
    assert [each["commits"] for each in (small, large)] == [4, 14]


@pytest.mark.proof
def test_no_measurement_grows_faster_than_the_work(home, record_property):
    from batch_assets.resources.spark import SparkResource

    spark = SparkResource(master="local[2,4]")
    try:
        figures = list(measured(home, spark, SIZES, ROWS))
    finally:
        spark.stop()
    print(table(figures))
    record_property("figures", json.dumps(figures))
    assert [each["rows scored"] for each in figures] == [size * ROWS for size in SIZES]
    last = figures[-1]
    assert last["seconds a batch, last tenth"] <= SLACK * last["seconds a batch, first tenth"]
    assert last["driver MiB"] <= figures[0]["driver MiB"] + 256
    # A small lake has no checkpoint yet, and growth from zero would be infinite.
    grown = [name for name in PER_LAKE if figures[0][name]]
    faster = {name: growth(figures, name) for name in grown if growth(figures, name) > SLACK}
    assert faster == {}
