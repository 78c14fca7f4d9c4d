"""What differs from one machine on a standalone cluster of one worker, with the package installed from its wheel."""

import os
import pickle
import subprocess
import sys

import pytest

from batch_assets.scoring.model_artifacts import Artifact, digest_of_folder
from batch_assets_tests.clusters import loopback_cluster, python_with_wheel
from batch_assets_tests.test_scoring import but_for_the_model, land, rows, score, score_model_of_its_own, texts

LOOPBACK = {"spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false", "spark.executor.memory": "512m"}


@pytest.fixture(scope="module")
def workers_python(tmp_path_factory):
    return python_with_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, workers_python):
    with loopback_cluster(tmp_path_factory.mktemp("cluster") / "c", workers=1, cores=2, memory="1g") as cluster:
        yield cluster


def driver(folder, python, **work):
    """Start a separate driver that scores one batch on workers with the given Python."""
    arguments = folder / "arguments"
    arguments.write_bytes(pickle.dumps(work))
    command = [sys.executable, "-m", "batch_assets_tests.scoring_process", str(arguments)]
    environment = {**os.environ, "PYSPARK_PYTHON": str(python), "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / "driver.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finished(process, folder):
    """Wait for a driver and return its exit status and output."""
    return process.wait(300), (folder / "driver.log").read_text()


@pytest.mark.proof
def test_workers_with_the_wheel_fetch_the_model_once_and_write_the_same_as_one_machine(
    spark,
    lake,
    t5,
    documents,
    tmp_path,
    cluster,
    workers_python,
):
    land(lake, "a", texts(documents, 8))
    score(spark, lake, "a", t5)
    undisturbed = rows(lake, "a")
    land(lake, "b", texts(documents, 8))
    model = score_model_of_its_own(t5)
    resource = {"master": cluster.url, "config": LOOPBACK}
    work = {"lake": lake, "models": {"b": model}, "seconds": 0, "resource": resource}
    status, said = finished(driver(tmp_path, workers_python, **work), tmp_path)
    assert status == 0, said
    assert "scored 8 of 8, model loaded 2 times" in said
    assert but_for_the_model(rows(lake, "b")) == but_for_the_model(undisturbed)
    (kept,) = (cluster.folder / "tmp").glob("batch_assets_models_*")
    fetched = {path.name for path in kept.iterdir() if path.is_dir()}
    assert fetched == {digest_of_folder(kept / name) for name in fetched}
    assert len(fetched) == len([folder for folder in (model.path, model.engine_path) if folder])


@pytest.mark.proof
def test_a_worker_without_the_package_is_reported_before_any_work(lake, t5, tmp_path, cluster):
    import venv

    venv.create(tmp_path / "bare", symlinks=True)
    resource = {"master": cluster.url, "config": LOOPBACK}
    work = {"lake": lake, "models": {"a": t5}, "seconds": 0, "resource": resource}
    status, said = finished(driver(tmp_path, tmp_path / "bare" / "bin" / "python", **work), tmp_path)
    assert status == 1
    assert "BatchAssetsError: the worker on " in said
    assert "has no batch_assets" in said


def test_a_fetched_model_that_differs_from_the_drivers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"good")
    artifact = Artifact.of(str(tmp_path / "model"), (tmp_path / "model").as_uri())
    (tmp_path / "model" / "weights").write_bytes(b"evil")
    with pytest.raises(RuntimeError, match="differs from the driver's"):
        artifact.fetch()
    (tmp_path / "model" / "weights").write_bytes(b"good")
    folder = artifact.fetch()
    (tmp_path / "model" / "weights").write_bytes(b"evil")
    assert artifact.fetch() == folder
    assert digest_of_folder(tmp_path / "tmp" / folder) == artifact.digest


def test_a_model_that_a_worker_cannot_reach_is_an_error_that_says_where_to_keep_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"can't fetch the model from .*gone.*: keep MLflow's artifacts where"):
        Artifact((tmp_path / "gone").as_uri(), "0" * 64).fetch()
