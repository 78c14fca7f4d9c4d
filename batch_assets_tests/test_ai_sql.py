"""ai_query and related functions in SQL and the DataFrame API, on a real session and a server that counts requests."""
# ruff: noqa: E501 - statements and their results, side by side

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyspark.sql import Row

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.execution import answer_batch
from batch_assets.ai_functions.planner import ai_sql, endpoints_of
from batch_assets.ai_functions.requests import AiFunctionError, Request
from batch_assets.graph.ai_query_inference import statement_of
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, PROD_DATA
from batch_assets.lake.counts import Counts
from batch_assets.lake.staging import stage
from batch_assets.settings import Settings
from batch_assets_tests.conftest import BATCH_ASSETS, environment
from batch_assets_tests.servers import ChatServer, Reply, completion


def answer(body: dict, number: int) -> Reply:
    """Answer with the prompt's last word in capitals or, given a schema, with the first choice or each field's name."""
    prompt = body["messages"][0]["content"]
    if "bad" in prompt:
        return 400, {}, b"no"
    if "response_format" not in body:
        return completion(prompt.split()[-1].upper())
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    values = {
        name: field["enum"][0] if "enum" in field else 7 if "integer" in field["type"] else name
        for name, field in fields.items()
    }
    return completion(json.dumps(values))


@pytest.fixture
def server():
    with ChatServer(answer) as server:
        yield server


@pytest.fixture
def functions(spark, server):
    """The functions with one endpoint, e, and a view of 25 rows: each text from 0 to 4 four times, and five nulls."""
    from batch_assets.ai_functions.functions import register_ai_functions

    rows = [(number, f"text {number % 5}" if number < 20 else None, number % 2) for number in range(25)]
    spark.createDataFrame(rows, "id int, text string, half int").repartition(3).createOrReplaceTempView("texts")
    return register_ai_functions(spark, {"e": endpoint(server)})


def endpoint(server: ChatServer, **fields) -> Endpoint:
    return Endpoint(**{"name": "e", "base_url": server.url, "model": "m", "deadline_seconds": 20, **fields})


def register(spark, server: ChatServer, **fields):
    from batch_assets.ai_functions.functions import register_ai_functions

    return register_ai_functions(spark, {"e": endpoint(server, **fields)})


def test_limit_and_order_by_are_pushed_below_the_call(spark, server, functions):
    rows = ai_sql(
        spark,
        "SELECT id, ai_query('e', CONCAT('say ', text, '_', id)) AS said FROM texts WHERE text IS NOT NULL "
        "ORDER BY id DESC LIMIT 10",
    ).collect()
    assert [(row.id, row.said) for row in rows] == [(n, f"{n % 5}_{n}") for n in range(19, 9, -1)]
    assert len(server.requests) == 10


def test_equal_requests_are_sent_once_nulls_never_and_collecting_again_sends_nothing(spark, server, functions):
    frame = ai_sql(spark, "SELECT id, ai_query('e', text) AS said FROM texts")
    rows = frame.collect()
    assert {row.id: row.said for row in rows} == {n: str(n % 5) if n < 20 else None for n in range(25)}
    assert sorted(server.prompts) == [f"text {n}" for n in range(5)]
    assert sorted(frame.collect()) == sorted(rows)
    assert len(server.requests) == 5
    ai_sql(spark, "SELECT id, ai_query('e', text) AS said FROM texts").collect()
    assert len(server.requests) == 10  # a new statement sends its own requests


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM (SELECT id, ai_query('e', text) AS said FROM texts) WHERE said <> '3'",
        "SELECT id, ai_query('e', text) AS said FROM texts WHERE ai_query('e', text) <> '3'",
        "WITH asked AS (SELECT id, ai_query('e', text) AS said FROM texts) SELECT * FROM asked WHERE said <> '3'",
    ],
)
def test_a_projection_and_a_filter_on_the_same_answer_share_one_request(spark, server, functions, query):
    rows = ai_sql(spark, query).collect()
    assert sorted(row.said for row in rows) == ["0"] * 4 + ["1"] * 4 + ["2"] * 4 + ["4"] * 4
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("query", "rows", "requests"),
    [
        ("SELECT ai_classify(text, array('x', 'y')) AS l, count(*) AS n FROM texts GROUP BY l", [("x", 20), (None, 5)], 5),
        ("SELECT ai_gen(text) AS g, sum(id) s FROM texts GROUP BY 1 HAVING sum(id) > 40", [("4", 46), ("3", 42), (None, 110)], 5),
        ("SELECT half, ai_gen(concat('n ', count(*))) AS g FROM texts GROUP BY half", [(0, "13"), (1, "12")], 2),
        ("SELECT ai_translate(ai_gen(text), 'de') AS g FROM texts ORDER BY id LIMIT 1", [("0",)], 2),
        ("SELECT id, ai_gen(text) AS g, upper(g) AS u FROM texts WHERE id = 1", [(1, "1", "1")], 1),
        ("SELECT id, text, half, ai_gen(text) FROM texts LIMIT 0", [], 0),
        ("SELECT *, ai_gen(text) AS g FROM texts WHERE id < 2", [(0, "text 0", 0, "0"), (1, "text 1", 1, "1")], 2),
        ("SELECT DISTINCT ai_gen(text) FROM texts WHERE half = 0", [(str(n),) for n in range(5)] + [(None,)], 5),
        ("SELECT max(id) OVER (PARTITION BY ai_gen(text)) m FROM texts WHERE id IN (1, 6)", [(6,), (6,)], 1),
        ("SELECT id, CASE WHEN half = 1 THEN ai_gen(text) ELSE 'no' END FROM texts WHERE id < 2", [(0, "no"), (1, "1")], 2),
        ("SELECT ai_gen('hello world')", [("WORLD",)], 1),
        ("SELECT t.id, u.g FROM texts t JOIN (SELECT id, ai_gen(text) g FROM texts WHERE id = 2) u ON t.id = u.id", [(2, "2")], 1),
        ("SELECT ai_gen(text) g FROM texts WHERE id = 0 UNION ALL SELECT ai_gen(text) FROM texts WHERE id = 1", [("0",), ("1",)], 2),
        ("SELECT id, ai_gen(text) AS text FROM texts WHERE id < 2", [(0, "0"), (1, "1")], 2),
        ("SELECT ai_gen(text) AS text, upper(text) AS u FROM texts WHERE id = 1", [("1", "TEXT 1")], 1),
        ("SELECT ai_gen(text) AS g, ai_gen(concat('not ', g, 5)) AS h FROM texts WHERE id = 1", [("1", "15")], 2),
        ("SELECT * EXCEPT (text), ai_gen(text) AS g FROM texts WHERE id = 1", [(1, 1, "1")], 1),
        ("SELECT *, half AS k, ai_gen(text) AS g FROM texts ORDER BY k DESC, id LIMIT 1", [(1, "text 1", 1, 1, "1")], 5),
        ("SELECT explode(ai_query('e', 'say [1,2,3]', returnType => 'ARRAY<INT>')) AS x LIMIT 2", [(1,), (2,)], 1),
        ("SELECT id, ai_query('e', text, failOnError => false) AS a, a.result AS r FROM texts WHERE id < 2 ORDER BY a.result DESC LIMIT 1", [(1, Row(result="1", errorMessage=None), "1")], 2),
        ("SELECT half, ai_gen(concat('n ', count(*))) AS g FROM texts GROUP BY half HAVING g = '12'", [(1, "12")], 2),
        ("SELECT id FROM texts WHERE ai_gen(text) IN (SELECT CAST(id AS STRING) FROM texts WHERE id = 3) AND id < 5", [(3,)], 5),
        ("SELECT ai_gen('What''s this') AS g, 'it''s' AS s", [("THIS", "it's")], 1),
        ("SELECT ai_gen(text), ai_gen(concat(text, 0)) FROM texts WHERE id = 1", [("1", "10")], 2),
        ("WITH t AS (SELECT id, ai_gen(text) AS g FROM texts) SELECT a.g FROM t a JOIN t b ON a.id = b.id WHERE a.id = 1", [("1",)], 5),
        ("SELECT 1 AS one", [(1,)], 0),
    ],
)  # fmt: skip
def test_a_call_works_anywhere_in_a_query_and_sends_only_the_requests_it_needs(
    spark, server, functions, query, rows, requests
):
    found = [tuple(row) for row in ai_sql(spark, query).collect()]
    assert sorted(map(repr, found)) == sorted(map(repr, rows))
    assert len(server.requests) == requests


def test_rows_excluded_by_a_condition_send_no_further_requests(spark, server, functions):
    query = "SELECT ai_gen(text) AS g FROM texts WHERE half = 0 AND ai_gen(concat('is it ', text)) = '4'"
    assert {row.g for row in ai_sql(spark, query).collect()} == {"4"}
    assert sorted(server.prompts) == sorted([*(f"is it text {n}" for n in range(5)), "text 4"])


CALLS = [
    ("ai_query('e', 'say 42', returnType => 'INT')", "int", 42),
    ("ai_query('e', 'say [1.5,2]', 'ARRAY<DOUBLE>')", "array<double>", [1.5, 2.0]),
    ("ai_query('e', 'say 2026-01-31', returnType => 'DATE')", "date", "2026-01-31"),
    ("ai_query('e', 'say true', returnType => 'BOOLEAN')", "boolean", True),
    ("CAST(ai_query('e', 'say 2026-01-31T12:00:00Z', returnType => 'TIMESTAMP') AS STRING)", "string", "2026-01-31 12:00:00"),
    ("ai_query('e', 'say 7', returnType => 'DECIMAL(5,2)')", "decimal(5,2)", "7.00"),
    ("ai_query('e', 'say hi', failOnError => false).result", "string", "HI"),
    ("ai_query('e', 'bad', failOnError => false).errorMessage", "string",
     "[AI_FUNCTION_HTTP_REQUEST_ERROR] HTTP status 400\nno"),
    ("ai_query('e', 'say x', returnType => 'INT', failOnError => false).errorMessage", "string",
     "[AI_FUNCTION_HTTP_PARSE_CAST_ERROR] the answer can't be read as int: Expecting value: line 1 column 1 (char 0)"),
    ("ai_query('e', 'x', responseFormat => 'STRUCT<r: STRUCT<n: INT, s: STRING>>')", "struct<n:int,s:string>", (7, "s")),
    ("ai_query('e', 'x', responseFormat => 'STRUCT<n: INT, s: STRING>').n", "int", 7),
    ("""ai_query('e', 'x', responseFormat => '{"type": "json_schema", "json_schema": {"name": "a", "schema":
     {"type": "object", "properties": {"n": {"type": "integer"}}}}}')""", "string", '{"n": 7}'),
    ("""ai_query('e', 'x', returnType => schema_of_json('{"n": 1}'), responseFormat => '{"type": "object",
     "properties": {"n": {"type": "integer"}}}')""", "struct<n:bigint>", (7,)),
    ("ai_summarize('a b')", "string", "B"),
    ("ai_summarize(content => 'a b', max_words => 0)", "string", "B"),
    ("ai_extract('a', array('name', 'place'))", "struct<name:string,place:string>", ("name", "place")),
    ("ai_analyze_sentiment('a')", "string", "positive"),
    ("ai_fix_grammar('a b')", "string", "B"),
    ("ai_mask('a b', array('name'))", "string", "B"),
    ("ai_query('e', NULL)", "string", None),
    ("ai_classify(NULL, array('a', 'b'))", "string", None),
]  # fmt: skip


def test_an_answer_has_the_type_requested_by_the_call(spark, functions):
    columns = [f"{call} AS v{number}" for number, (call, _, _) in enumerate(CALLS)]
    frame = ai_sql(spark, f"SELECT {', '.join(columns)}")
    assert [field.dataType.simpleString() for field in frame.schema] == [type_ for _, type_, _ in CALLS]
    found = frame.collect()[0]
    assert [
        str(v) if type_ in {"date", "decimal(5,2)"} else v for v, (_, type_, _) in zip(found, CALLS, strict=True)
    ] == [value for _, _, value in CALLS]


def test_the_columns_of_a_prediction_must_match_the_type(spark):
    with ChatServer(lambda body, n: (200, {}, b'{"predictions": [{"a": 1, "b": "x"}]}')) as server:
        register(spark, server, kind="mlflow")
        calls = {
            "named_struct('x', 1.5), 'STRUCT<a: INT, b: STRING>'": (1, "x"),
            "named_struct('x', 1.5)": '{"a": 1, "b": "x"}',
        }
        for arguments, value in calls.items():
            assert ai_sql(spark, f"SELECT ai_query('e', {arguments})").collect()[0][0] == value
        wrong = ai_sql(spark, "SELECT ai_query('e', 'x', 'INT', false).errorMessage").collect()[0][0]
        assert "AI_FUNCTION_HTTP_PARSE_COLUMNS_ERROR] the model returned the columns a, b" in wrong
    assert server.requests[0][0] == {"dataframe_records": [{"x": 1.5}]}


def test_the_parameters_of_a_call_are_merged_with_those_of_the_endpoint(spark, server):
    register(spark, server, parameters={"temperature": 0, "max_tokens": 5})
    query = "SELECT ai_query('e', 'x', modelParameters => named_struct('max_tokens', 9, 'top_p', 0.5))"
    ai_sql(spark, query).collect()
    body = server.requests[0][0]
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0, 9, 0.5)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT FROM WHERE (", "can't be parsed"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("DROP TABLE x", "only queries"),
        ("SELECT ai_query('other', text) FROM texts", "no endpoint 'other'; configured: e"),
        ("SELECT ai_query(text, 'x') FROM texts", "endpoint must be a literal"),
        ("SELECT ai_query('http://127.0.0.1:1/v1', 'x')", "no endpoint 'http"),
        ("SELECT ai_query('e', 'x', failOnError => half) FROM texts", "failOnError must be a literal"),
        ("SELECT ai_query('e')", "needs request"),
        ("SELECT ai_query('e', 'x', model => 'm')", "unknown parameter model"),
        ("SELECT ai_gen('a', 'b')", "takes at most 1 arguments"),
        ("SELECT ai_query('e', 'x', returnType => 'NUMBER')", "is not a valid type"),
        ("SELECT ai_query('e', 'x', returnType => 'BINARY')", "answers can't be read as binary"),
        ("SELECT ai_query('e', 'x', responseFormat => 'INT')", "is not a STRUCT"),
        ("SELECT ai_query('e', 'x', responseFormat => '{\"type\": 3}')", "is not a valid JSON schema"),
        ("SELECT ai_extract('x', array())", "0 labels"),
        ("SELECT transform(array('a'), x -> ai_gen(x))", "can't be used in a lambda"),
        ("SELECT * FROM texts a JOIN texts b ON ai_gen(a.text) = b.text", "can't be used in a join condition"),
        ("CREATE TABLE x AS SELECT 1", "needs a lake"),
        ("SELECT half, max(ai_gen(text)) FROM texts GROUP BY half WITH ROLLUP", "ROLLUP"),
        ("SELECT count(*) FILTER (WHERE ai_gen(text) = 'x') FROM texts", "FILTER"),
        (
            "SELECT ai_gen(text) FROM texts UNION ALL SELECT text FROM texts ORDER BY ai_gen('x')",
            "can't be used here",
        ),
    ],
)
def test_an_invalid_statement_is_refused_with_the_reason_before_any_request(spark, server, functions, query, message):
    with pytest.raises(AiFunctionError, match=message):
        ai_sql(spark, query)
    assert not server.requests


def test_a_batch_sends_no_request_for_documents_without_text_even_if_answered_before(spark, server, lake):
    no_text = "the document has no text"
    asked = [f"text {number}" for number in range(3)]
    documents = dict(enumerate([None, "", " \t\n", *asked, "\u200b\u200d", "\ufeff", "\u2800", "."]))

    def write(table, rows: list[dict]) -> None:
        snapshot = lake.open(table)
        written = pa.Table.from_pylist(rows, schema=table.file_schema)
        snapshot.replace("a", stage([written], snapshot.staging_area("a")), {})

    now = datetime.now(UTC)
    write(PROD_DATA, [{"id": str(n), "document": text, "landed_at": now} for n, text in documents.items()])
    # An earlier release sent requests for empty documents too.
    statement = statement_of(Settings(endpoint="e", ai_query_limit=9), "a")
    prompt = statement.split("CONCAT('")[1].split("'")[0]
    old = [{"id": "0", "endpoint": "e"}]
    for number, said in ((1, "invented"), (3, "0")):
        request_hash = Request(prompt + documents[number]).hash(endpoint(server))
        old.append({"id": str(number), "endpoint": "e", "generated_summary": said, "request_hash": request_hash})
    write(AI_QUERY_INFERENCE, old)
    output, one = lake.open(AI_QUERY_INFERENCE), endpoint(server)
    answered = answer_batch(spark, lake, lake.open(PROD_DATA), output, "a", one, statement, 9, {}, print)
    assert answered.counts == Counts(summaries=3, errors=0, no_text=6)
    rows = [row for part in lake.open(AI_QUERY_INFERENCE).read("a") for row in part.to_pylist()]
    assert {int(row["id"]): (row["generated_summary"], row["error_message"]) for row in rows} == {
        n: (text[-1], None) if text in asked else (None, no_text) for n, text in documents.items() if n < 9
    }
    assert sorted(server.prompts) == [prompt + text for text in asked[1:]]


def test_plain_spark_sql_has_the_functions_and_points_to_ai_sql_for_calls_it_cannot_support(spark, server, functions):
    row = spark.sql(
        "SELECT ai_query('e', 'say hi'), ai_summarize('a b'), ai_summarize('a b', 3), ai_classify('a', array('x', 'y')),"
        " ai_gen(CAST(NULL AS STRING)), ai_translate('a b', 'de')"
    ).collect()[0]
    assert tuple(row) == ("HI", "B", "B", "x", None, "B")
    for call in ("ai_query('e', text, failOnError => false)", "ai_extract(text, array('a'))"):
        with pytest.raises(Exception, match=r"run the statement with ai_sql\(\)"):
            spark.sql(f"SELECT {call} FROM texts").collect()


def test_the_data_frame_api_has_the_same_functions(spark, server, functions):
    from pyspark.sql import functions as F  # noqa: N812

    texts = spark.table("texts").where("id < 3")
    asked = texts.select(
        "id",
        functions.ai_query("e", "text", failOnError=False).alias("q"),
        functions.ai_extract(F.col("text"), ["name"]).alias("x"),
        functions.ai_classify("text", ["a", "b"]).alias("c"),
        functions.ai_summarize("text", 5).alias("s"),
    )
    rows = {row.id: row for row in asked.collect()}
    assert (rows[1].q.result, rows[1].q.errorMessage, rows[1].x.name, rows[1].c, rows[1].s) == (
        "1",
        None,
        "name",
        "a",
        "1",
    )


def test_fail_on_error_chooses_between_a_failed_statement_and_an_error_message(spark, server, functions):
    rows = ai_sql(
        spark, "SELECT id, ai_query('e', IF(id = 3, 'bad', text), failOnError => false) AS a FROM texts"
    ).collect()
    found = {row.id: row.a for row in rows}
    assert found[24] is None
    assert (found[1].result, found[1].errorMessage) == ("1", None)
    assert found[3].result is None and "HTTP status 400" in found[3].errorMessage
    before = len(server.requests)
    with pytest.raises(Exception, match="AI_FUNCTION_HTTP_REQUEST_ERROR"):
        ai_sql(spark, "SELECT ai_query('e', 'bad')").collect()
    assert len(server.requests) == before + 1  # tasks that Spark retries send no new requests


@pytest.mark.parametrize("plain", [False, True])
def test_a_refused_key_ends_the_statement_after_at_most_the_requests_in_flight(spark, monkeypatch, plain):
    # Workers get their environment when the session starts, long before this test.
    monkeypatch.setitem(spark.sparkContext.environment, "SOME_KEY", "sesame")
    with ChatServer(lambda body, n: (401, {}, b"sesame is wrong")) as server:
        register(spark, server, requests_in_flight=4, api_key_env="SOME_KEY")
        query = "SELECT ai_query('e', CAST(id AS STRING)) FROM range(0, 400, 1, 4)"
        with pytest.raises(Exception, match="refuses access") as caught:
            (spark.sql(query) if plain else ai_sql(spark, query)).collect()
    assert 1 <= len(server.requests) <= 4
    assert "sesame" not in str(caught.value)


def test_limits_on_requests_in_flight_rates_and_budgets_hold_across_all_tasks(spark):
    with ChatServer(lambda body, n: completion("fine")) as server:
        register(spark, server, requests_in_flight=3, requests_per_minute=1200)
        query = "SELECT ai_query('e', CAST(id AS STRING)) FROM range(0, 40, 1, 8)"
        ai_sql(spark, query).collect()
        assert (len(server.requests), server.most_at_once <= 3) == (40, True)
        assert server.times[-1] - server.times[0] >= 39 * 0.05 * 0.95
        register(spark, server, requests_per_statement=7)
        with pytest.raises(Exception, match="requests_per_statement = 7"):
            ai_sql(spark, query).collect()
        assert len(server.requests) == 47
        with pytest.raises(Exception, match=r"run the statement with ai_sql\(\)"):
            spark.sql(query).collect()
        register(spark, server, requests_in_flight=200)
        ai_sql(spark, query).collect()  # more than one client takes, so two tasks
        assert len(server.requests) == 87


def test_an_endpoint_that_allows_fewer_requests_than_tasks_needs_ai_sql(spark, server):
    register(spark, server, requests_in_flight=1)
    with pytest.raises(Exception, match=r"too low.*ai_sql\(\)"):
        spark.sql("SELECT ai_query('e', 'x')").collect()
    assert ai_sql(spark, "SELECT ai_query('e', 'x')").collect()[0][0] == "X"
    assert server.most_at_once == 1


TALK = """CREATE OR REPLACE TABLE main.mine.ai_query_inference AS (
  SELECT id,
    ai_query("e", CONCAT("Based on the following document, provide a summary in less than 100 words. Document: ", document))
    AS generated_summary
  FROM m4_1_prod_data LIMIT 10
)"""


def test_the_statement_from_the_talk_creates_a_table_with_ten_requests(spark, server, functions, lake):
    documents(spark, lake)
    assert len(ai_sql(spark, TALK, lake).collect()) == 10
    assert len(server.requests) == 10
    table = DeltaTable(f"{lake.uri}/main/mine/ai_query_inference")
    assert (table.version(), table.to_pyarrow_table().num_rows) == (1, 10)
    other = "CREATE OR REPLACE TABLE mine.ai_query_inference AS SELECT id, 1 AS n FROM m4_1_prod_data"
    again = ai_sql(spark, other, lake)
    assert (again.columns, again.count()) == (["id", "n"], 40)
    assert ai_sql(spark, "SELECT count(*) FROM main.mine.ai_query_inference AS t WHERE t.n = 1", lake).first()[0] == 40
    unless = "CREATE TABLE IF NOT EXISTS mine.ai_query_inference AS SELECT ai_gen('x')"
    assert ai_sql(spark, unless, lake).count() == 40
    assert len(server.requests) == 10


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE OR REPLACE TABLE m4_1_prod_data AS SELECT 1 AS x", "belongs to an asset"),
        ("CREATE OR REPLACE TABLE main.default.M4_1_BATCH_INFERENCE AS SELECT 1 AS x", "belongs to an asset"),
        ("CREATE TABLE `../x`.y AS SELECT 1 AS x", "is not a valid table name"),
        ("CREATE TABLE `_completions`.x.y AS SELECT 1 AS x", "is not a valid table name"),
        ("CREATE TABLE x LOCATION '/tmp/x' AS SELECT 1 AS x", "doesn't support LOCATION"),
        ("CREATE VIEW x AS SELECT 1", "only supported CREATE statement"),
        ("SELECT * FROM nowhere", "no table main.default.nowhere"),
        ("SELECT ai_gen(id) FROM m4_1_prod_data VERSION AS OF 0", "older versions"),
    ],
)
def test_tables_of_assets_and_invalid_table_names_are_refused(spark, server, functions, lake, statement, message):
    documents(spark, lake)
    with pytest.raises(AiFunctionError, match=message):
        ai_sql(spark, statement, lake)
    assert not server.requests


def documents(spark, lake) -> None:
    from batch_assets.lake.deltars import register_deltars

    register_deltars(spark)
    rows = [(str(number), f"text {number}") for number in range(40)]
    frame = spark.createDataFrame(rows, "id string, document string").repartition(4)
    frame.write.format("deltars").mode("append").save(f"{lake.uri}/main/default/m4_1_prod_data")


def query(home: Path, *arguments: str, file: Path) -> subprocess.CompletedProcess[str]:
    env = environment(home, ENDPOINTS=str(file), ENDPOINT="e", SPARK_MASTER="local[2,4]")
    return subprocess.run([*BATCH_ASSETS, "query", *arguments], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.proof
def test_a_killed_query_resumes_with_the_missing_answers_and_a_new_one_starts_over(tmp_path, home):
    file = tmp_path / "endpoints.toml"
    statement = "CREATE TABLE me.said AS SELECT id, ai_query('e', CAST(id AS STRING)) AS said FROM range(60)"
    running: list[subprocess.Popen] = []
    pause = threading.Event()

    def reply(body: dict, number: int) -> Reply:
        if number == 30 and running:
            running[0].send_signal(signal.SIGKILL)
        pause.wait(0.1)
        return completion(body["messages"][0]["content"])

    with ChatServer(reply) as server:
        file.write_text(f'[endpoints.e]\nbase_url = "{server.url}"\nmodel = "m"\nrequests_in_flight = 4\n')
        env = environment(home, ENDPOINTS=str(file), ENDPOINT="e", SPARK_MASTER="local[2,4]")
        running.append(subprocess.Popen([*BATCH_ASSETS, "query", statement], env=env, stderr=subprocess.DEVNULL))
        assert running[0].wait() == -signal.SIGKILL
        asked = len(server.requests)
        assert 30 <= asked < 60
        running.clear()
        done = query(home, "--resume", statement, file=file)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) <= 60 + 4
        assert "60 rows" in done.stderr
        made = DeltaTable(str(home / "lake" / "main" / "me" / "said")).to_pyarrow_table()
        assert sorted(map(int, made["said"].to_pylist())) == list(range(60))
    assert not list((home / "lake" / "_completions").rglob("*.parquet"))


@pytest.mark.proof
def test_a_registered_model_served_by_mlflow_answers_like_the_model_itself(spark, t5_version, documents):
    import mlflow

    from batch_assets.ai_functions.functions import register_ai_functions

    settings, _, version = t5_version
    port = free_port()
    command = ["models", "serve", "-m", f"models:/{version.name}@champion", "--env-manager", "local", "-p", str(port)]
    # MLflow looks up uvicorn on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "MLFLOW_TRACKING_URI": settings.tracking_uri, "PATH": path}
    serving = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", serving)
        served = Endpoint(name="served", kind="mlflow", base_url=f"http://127.0.0.1:{port}", model="t5/1")
        register_ai_functions(spark, {"served": served})
        texts = [row["document"] for row in documents[:2]]
        spark.createDataFrame([(text,) for text in texts], "text string").createOrReplaceTempView("papers")
        rows = ai_sql(spark, "SELECT text, ai_query('served', text) AS said FROM papers").collect()
        wrong = ai_sql(spark, "SELECT ai_query('served', text, 'INT', false) AS said FROM papers").collect()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(serving.pid, signal.SIGTERM)
        serving.wait()
    alone = mlflow.pyfunc.load_model(version.uri).predict(texts)
    assert {row.text: row.said for row in rows} == dict(zip(texts, alone, strict=True))
    assert all("AI_FUNCTION_HTTP_PARSE_CAST_ERROR" in row.said.errorMessage for row in wrong)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"nothing answers at {url}")


def test_a_refused_query_prints_one_line_and_exits_with_status_2(tmp_path, home):
    file = tmp_path / "endpoints.toml"
    file.write_text('[endpoints.e]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "m"\n')
    refused = query(home, "SELECT ai_query('gpt', 'x')", file=file)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.search(r"^batch-assets: there is no endpoint 'gpt'", refused.stderr, re.MULTILINE)


def test_the_endpoints_of_a_statement_are_known_before_it_runs():
    query = "SELECT ai_query('a', x), ai_gen(x) FROM (SELECT ai_query(\"b\", y) AS x FROM t)"
    assert endpoints_of(query, "default") == {"a", "b", "default"}
