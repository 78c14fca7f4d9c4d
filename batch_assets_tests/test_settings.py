import pytest

from batch_assets.errors import BatchAssetsError
from batch_assets.settings import load_settings, redacted


def test_settings_have_defaults_without_any_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.model == "smollm2"
    assert settings.lake_uri == str(tmp_path / ".batch_assets" / "lake")
    assert settings.registered_model == "main.default.summarizer"
    assert not settings.do_sample


def test_an_unknown_setting_is_reported_with_the_closest_match(monkeypatch):
    monkeypatch.setenv("BATCH_ASSETS_MODLE", "t5-small")
    with pytest.raises(BatchAssetsError, match=r"BATCH_ASSETS_MODLE.*BATCH_ASSETS_MODEL"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ENGINE", "warp"),
        ("LIMIT", "0"),
        ("LIMIT", "many"),
        ("SCHEMA", "a b"),
        ("CATALOG", "../etc"),
        ("MIN_LENGTH", "-1"),
        ("PROMPT", "no place for the text"),
        ("UI_PORT", "70000"),
        ("SPARK_MASTER", ""),
        ("MODEL", ""),
        ("DATASET", " "),
        ("DATASET", "jdbc:postgresql://me:secret@host/db"),
        ("EVALUATION_DATASET", "s3://bucket/data.jsonl"),
        ("MODEL", "https://example.org/model"),
    ],
)
def test_an_invalid_value_is_reported_with_its_variable(monkeypatch, variable, value):
    monkeypatch.setenv(f"BATCH_ASSETS_{variable}", value)
    with pytest.raises(BatchAssetsError, match=f"BATCH_ASSETS_{variable}=") as refused:
        load_settings()
    assert "secret" not in str(refused.value)


def test_contradictory_lengths_are_refused(monkeypatch):
    monkeypatch.setenv("BATCH_ASSETS_MIN_LENGTH", "50")
    monkeypatch.setenv("BATCH_ASSETS_MAX_LENGTH", "40")
    with pytest.raises(BatchAssetsError, match="MIN_LENGTH"):
        load_settings()


def test_links_point_to_the_ui_of_the_store_that_holds_the_linked_object(monkeypatch):
    local = load_settings()
    assert (local.mlflow_pages, local.registry_pages) == ("http://127.0.0.1:5000",) * 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000/")
    assert (load_settings().mlflow_pages, load_settings().registry_pages) == ("http://mlflow:5000",) * 2
    monkeypatch.setenv("BATCH_ASSETS_MLFLOW_UI", "https://mlflow.example.org/")
    assert (load_settings().mlflow_pages, load_settings().registry_pages) == ("https://mlflow.example.org",) * 2
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry:5000")
    assert load_settings().registry_pages == "http://registry:5000"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "databricks-uc")
    assert load_settings().registry_pages is None


def test_passwords_and_tokens_in_addresses_are_hidden():
    shown = redacted("at sc://server:443/;token=secret;user_id=me and http://me:secret@host/x; mend it")
    assert shown == "at sc://server:443/ and http://host/x; mend it"
    assert redacted("postgresql://me:a/b@c?d#e@host/x?sslmode=require") == "postgresql://host/x?sslmode=require"
    shown = redacted("http://host/x?api_key=secret&page=2 mssql+pyodbc:///?odbc_connect=PWD%3Dsecret")
    assert shown == "http://host/x?api_key=***&page=2 mssql+pyodbc:///?odbc_connect=***"
