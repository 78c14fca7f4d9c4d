"""One pipeline under random sequences of what users, other writers and failures do, beside a model of what is right.

Hypothesis prints a sequence that fails as a script that repeats it. The model needs no table: it knows which documents
there are, which version answered each batch, and what every document is answered with.
"""

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from batch_assets.ai_functions.answering import CallContext, TaskAnswers
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.requests import AiFunctionError, Request
from batch_assets.engines.contract import Completion, ErrorClass, RowError, ScoringModel
from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, DEFAULT_TABLES, PROD_DATA, Table
from batch_assets.lake.counts import check_rows, counts_of
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.staging import stage
from batch_assets.lake.upkeep import compact
from batch_assets.models.promotion import rollback
from batch_assets.models.registry import CHAMPION, PREVIOUS, RegisteredModel
from batch_assets.operations.forget import forget
from batch_assets.scoring.completions import CompletionStore, FinishedWork, refuse_if_all_failed
from batch_assets.settings import Settings
from batch_assets.sources.files import FileDataset
from batch_assets.sources.landing import land_batch
from batch_assets.staleness import MODEL, Need, input_metadata, need_of
from batch_assets.text import has_text
from batch_assets_tests.servers import ChatServer, Reply, completion

BATCHES = ("a", "b")
IDS = ("1", "2", "3")
VERSIONS = (1, 2, 3)
# What a document's text makes the model and the endpoint do.
FINE, REFUSED, UNUSABLE, FLAKY, EMPTY = "fine", "refused", "unusable", "flaky", " "
TEXTS = (FINE, "another", REFUSED, UNUSABLE, FLAKY, EMPTY)
_FILTERED = completion("", "content_filter")

Document = tuple[str, str]
Row = tuple[str, str | None, str | None]
"""Id, answer and class of the error."""

documents_of_a_batch = st.dictionaries(st.sampled_from(IDS), st.sampled_from(TEXTS), min_size=1, max_size=len(IDS))


class KilledError(BaseException):
    """Stands for the end of the process: nothing handles it."""


class Fuse:
    """Kills the process at one of the points at which something is written, before or after it."""

    def __init__(self) -> None:
        self.left: int | None = None

    def around(self, holder: type, name: str, monkeypatch) -> None:
        """Let the points around a method count."""
        original = getattr(holder, name)

        def method(*arguments: Any, **options: Any) -> Any:
            self.point()
            result = original(*arguments, **options)
            self.point()
            return result

        monkeypatch.setattr(holder, name, method)

    def point(self) -> None:
        """Count a point, and be killed at the last one."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise KilledError


def answer_of_model(version: int, text: str, *, is_broken: bool = False) -> Completion:
    """What a version of the model says about a document."""
    if text == REFUSED:
        return Completion.failed("no", ErrorClass.DOCUMENT)
    if text == UNUSABLE and version == VERSIONS[0]:
        return Completion.failed("no label", ErrorClass.MODEL)
    if text == FLAKY and is_broken:
        return Completion.failed("out of order", ErrorClass.SERVICE)
    return Completion(f"version {version}: {text}", finish_reason="stop")


class TinyEngine:
    """An engine that fails for some documents, and for others while the file ``broken`` is in the model's folder."""

    def __init__(self, model: ScoringModel, threads: int) -> None:
        self._model = model

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        is_broken = (Path(self._model.path) / "broken").exists()
        for place, document in enumerate(documents):
            with (Path(self._model.path) / "requests").open("a") as log:
                log.write(".")
            yield place, answer_of_model(self._model.version, document, is_broken=is_broken)


class FaultyEndpoint:
    """A server that may refuse some requests, or all of them."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.server = ChatServer(self._reply)
        self.endpoint = Endpoint(name="e", base_url=self.server.url, model="m", deadline_seconds=5)

    def _reply(self, body: dict[str, Any], number: int) -> Reply:
        text = body["messages"][0]["content"]
        if self.fault == "closed" or (self.fault == "flaky" and text == FLAKY):
            return (401, {}, b"") if self.fault == "closed" else (404, {}, b"")
        return _FILTERED if text == REFUSED else completion(f"endpoint: {text}")


class PlainExecutor:
    """Scores and answers without Spark: what its jobs do, row by row in this process."""

    def score(
        self, machine: "PipelineMachine", documents: BatchSnapshot, output: BatchSnapshot, batch: str,
        model: ScoringModel, metadata: dict[str, Any], *, retry_errors: bool,
    ) -> None:  # fmt: skip
        store = CompletionStore.of(machine.lake, BATCH_INFERENCE, batch, model.fingerprint)
        known, attempts = FinishedWork.of(store, output, batch, retry_errors=retry_errors).load()
        rows = [row for part in documents.read(batch) for row in part.to_pylist()]
        engine = TinyEngine(model, 1)
        for text in dict.fromkeys(row["document"] for row in rows):
            request_hash = model.request_hash(text)
            if not has_text(text) or request_hash in known:
                continue
            for _, found in engine.stream([text]):
                written = replace(
                    found, request_hash=request_hash, model="m", model_version=model.version,
                    completed_at=datetime.now(UTC),
                )  # fmt: skip
                store.write([written])
                used = None if written.attempts is None else written.attempts + attempts[request_hash]
                known[request_hash] = replace(written, attempts=used)
        answers = [known[model.request_hash(row["document"])] if has_text(row["document"]) else None for row in rows]
        others = {"model_name": "m", "model_version": model.version}
        self._commit(rows, answers, output, batch, store, {**metadata, **others}, others)

    def answer(
        self, machine: "PipelineMachine", documents: BatchSnapshot, output: BatchSnapshot, batch: str,
        metadata: dict[str, Any], *, retry_errors: bool,
    ) -> None:  # fmt: skip
        endpoint = machine.faulty.endpoint
        store = CompletionStore.of(machine.lake, AI_QUERY_INFERENCE, batch, "ab" * 32)
        finished = FinishedWork.of(store, output, batch, retry_errors=retry_errors)
        rows = [row for part in documents.read(batch) for row in part.to_pylist()]
        task = TaskAnswers(finished)
        context = CallContext(uuid.uuid4().hex, {"e": endpoint}, finished, {"e": 1})
        requests = [Request(row["document"]) if has_text(row["document"]) else None for row in rows]
        try:
            answers = task.answer(context, endpoint, requests, fail_on_error=False)
        finally:
            task.close()
        self._commit(rows, answers, output, batch, store, metadata, {"endpoint": "e"})

    def _commit(
        self, rows: Sequence[dict[str, Any]], answers: Sequence[Completion | None], output: BatchSnapshot, batch: str,
        store: CompletionStore, metadata: dict[str, Any], others: dict[str, Any],
    ) -> None:  # fmt: skip
        table = output.table
        written = []
        for row, answer in zip(rows, answers, strict=True):
            fields = {column: getattr(answer, field, None) for column, field in table.completion_fields.items()}
            if answer is None:
                fields["error_message"] = RowError.NO_TEXT.value
            written.append({**{name: row.get(name) for name in table.column_names}, **fields, **others})
        content = pa.Table.from_pylist(written, schema=table.file_schema)
        staged = stage([content] if rows else [], output.staging_area(batch))
        refuse_if_all_failed(store, batch, counts_of(staged).summaries)
        check_rows(batch, staged, len(rows), table.output_column)
        output.replace(batch, staged, metadata)
        store.clear_batch()


class PipelineMachine(RuleBasedStateMachine):
    """The pipeline, and the model of what is right.

    Tests set the attributes that all sequences share; ``tables`` is a lake with empty tables.
    """

    client: Any
    fuse: Fuse
    faulty: FaultyEndpoint
    executor: Any
    tables: Path

    @initialize(rescore=st.sampled_from(["none", "all"]), content=documents_of_a_batch)
    def begin(self, rescore: str, content: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="machine"))
        (self.folder / "data").mkdir()
        (self.folder / "model").mkdir()
        (self.folder / "model" / "requests").touch()
        self.settings = Settings(
            home=self.folder / "home", rescore=rescore, endpoint="e", ai_query_limit=0, error_attempts=1000
        )
        self.lake = Lake.of(self.settings)
        shutil.copytree(self.tables, self.lake.uri)
        self.model = RegisteredModel(self.client, "machine")
        for alias in (CHAMPION, PREVIOUS):
            self.client.delete_registered_model_alias(self.model.name, alias)
        self.client.set_registered_model_alias(self.model.name, CHAMPION, "1")
        self.faulty.fault = None
        # The model of what is right: documents by batch, batches that other writers own, ids that were forgotten,
        # champion and previous champion, and for each batch the versions that may have answered it.
        self.documents: dict[str, list[Document]] = {}
        self.foreign: set[str] = set()
        self.forgotten: set[str] = set()
        self.champion, self.previous = 1, None
        self.answered_by: dict[str, set[int]] = {}
        self.outdated: set[str] = set()
        self.land(BATCHES[0], content)
        self.score()

    # What people and other writers do

    @rule(batch=st.sampled_from(BATCHES), content=documents_of_a_batch)
    def land(self, batch: str, content: dict[str, str]) -> None:
        lines = [json.dumps({"id": key, "document": text}) for key, text in content.items()]
        (self.folder / "data" / f"{batch}.jsonl").write_text("\n".join(lines))
        self._again_if_killed(lambda: self._land(batch))
        if batch not in self.foreign:
            self._now(batch, [one for one in content.items() if one[0] not in self.forgotten])

    def _land(self, batch: str) -> None:
        found = land_batch(FileDataset(str(self.folder / "data"), 100), self.lake, DEFAULT_TABLES, batch, "run")
        assert found.observed == (batch in self.foreign)

    @rule(batch=st.sampled_from(BATCHES), key=st.sampled_from(IDS), text=st.sampled_from(TEXTS))
    def append_as_another_writer(self, batch: str, key: str, text: str) -> None:
        write_deltalake(self.lake.table_uri(PROD_DATA), self._rows(batch, [(key, text)]), mode="append")
        self.foreign.add(batch)
        self._now(batch, [*self.documents.get(batch, []), (key, text)])

    @rule(batch=st.sampled_from(BATCHES), key=st.sampled_from(IDS))
    def delete_as_another_writer(self, batch: str, key: str) -> None:
        left = [one for one in self.documents.get(batch, []) if one[0] != key]
        DeltaTable(self.lake.table_uri(PROD_DATA)).delete(f"batch = '{batch}' AND id = '{key}'")
        if len(left) < len(self.documents.get(batch, [])):
            self.foreign.add(batch)
            self._now(batch, left)

    @rule(batch=st.sampled_from(BATCHES), content=documents_of_a_batch)
    def replace_as_another_writer(self, batch: str, content: dict[str, str]) -> None:
        rows = self._rows(batch, list(content.items()))
        uri = self.lake.table_uri(PROD_DATA)
        write_deltalake(uri, rows, mode="overwrite", predicate=f"batch = '{batch}'")
        self.foreign.add(batch)
        self._now(batch, list(content.items()))

    @rule(batch=st.sampled_from(BATCHES), table=st.sampled_from([BATCH_INFERENCE, AI_QUERY_INFERENCE]))
    def delete_answers_as_another_writer(self, batch: str, table: Table) -> None:
        if self.lake.open(table).files(batch):
            DeltaTable(self.lake.table_uri(table)).delete(f"batch = '{batch}'")
            if table is BATCH_INFERENCE:
                self.outdated.add(batch)

    @rule(key=st.sampled_from(IDS))
    def forget(self, key: str) -> None:
        self._again_if_killed(lambda: forget(self.lake, self.settings, self.client, key, "run"))
        self.forgotten.add(key)
        for batch, content in list(self.documents.items()):
            if any(one[0] == key for one in content):
                self._now(batch, [one for one in content if one[0] != key])

    @rule(version=st.sampled_from(VERSIONS))
    def promote(self, version: int) -> None:
        self._move_champion(lambda: self.model.promote(self.model.version(version)), version)

    @precondition(lambda self: self.previous is not None)
    @rule()
    def roll_back(self) -> None:
        self._move_champion(lambda: rollback(self.model), self.previous)

    @rule()
    def compact(self) -> None:
        def tables() -> None:
            for table in DEFAULT_TABLES.all:
                compact(self.lake.open(table).delta, print)

        self._again_if_killed(tables)

    @rule()
    def score(self) -> None:
        self._score(self.settings)

    @rule()
    def request_failed_rows(self) -> None:
        self._score(self.settings.model_copy(update={"retry_errors": True}))

    # What fails

    @rule(fault=st.sampled_from(["flaky", "closed", None]))
    def change_the_endpoint(self, fault: str | None) -> None:
        self.faulty.fault = fault

    @rule(is_broken=st.booleans())
    def change_the_engine(self, is_broken: bool) -> None:
        flag = self.folder / "model" / "broken"
        flag.touch() if is_broken else flag.unlink(missing_ok=True)

    @rule(points=st.integers(0, 12))
    def kill_the_next_command(self, points: int) -> None:
        self.fuse.left = points

    # The model of what is right

    def _now(self, batch: str, content: list[Document]) -> None:
        if content != self.documents.get(batch):
            self.outdated.add(batch)
        self.documents[batch] = content
        if not content:
            self.foreign.discard(batch)  # no row of the other writer is left

    def _rows(self, batch: str, content: list[Document]) -> pa.Table:
        rows = [
            {"id": key, "document": text, "batch": batch, "source": "theirs", "landed_at": datetime.now(UTC)}
            for key, text in content
        ]
        return pa.Table.from_pylist(rows, schema=PROD_DATA.arrow_schema)

    def _again_if_killed(self, command: Any) -> None:
        """Run a command, and once more if it was killed, as an engineer on call would."""
        try:
            command()
        except KilledError:
            command()
        self.fuse.left = None

    def _move_champion(self, command: Any, version: int) -> None:
        self._again_if_killed(command)
        if version != self.champion:
            self.champion, self.previous = version, self.champion
        aliases = {alias: number for number, names in self.model.aliases().items() for alias in names}
        assert (aliases[CHAMPION], aliases.get(PREVIOUS)) == (self.champion, self.previous)

    def _score(self, settings: Settings) -> None:
        """Run the assets of the answers over all batches."""
        wanted = {
            batch
            for batch in self.documents
            if batch in self.outdated or (settings.rescore == "all" and self.answered_by.get(batch) != {self.champion})
        }
        try:
            self._run(settings)
        except KilledError:
            # Some batches may have been committed.
            for batch in wanted:
                self.answered_by.setdefault(batch, set()).add(self.champion)
                self.outdated.add(batch)
        else:
            for batch in wanted:
                # After a kill, it is unknown which of the runs committed the batch.
                is_certain = settings.rescore == "all" or len(self.answered_by.get(batch, ())) < 2
                self.answered_by[batch] = (set() if is_certain else self.answered_by[batch]) | {self.champion}
            self.outdated.clear()
        self.fuse.left = None

    def _run(self, settings: Settings) -> None:
        number = self.model.champion().number
        pinned = self.lake.open(PROD_DATA)
        retry_errors = settings.retry_errors
        for batch in self.documents:
            output, expected = self.lake.open(BATCH_INFERENCE), input_metadata(pinned, batch)
            wanted = expected | ({MODEL: "m", "model_version": number} if settings.rescore == "all" else {})
            need = need_of(output, batch, wanted, self.lake.open(PROD_DATA).version, settings)
            if need is not Need.NOTHING:
                used = output.last_commit(batch).metadata["model_version"] if need is Need.FAILED_ROWS else number
                model = ScoringModel("m", used, f"{used}", str(self.folder / "model"), {}, None, "tiny", "none", 0)
                metadata = {**wanted, MODEL: "m", "model_version": used}
                self.executor.score(self, pinned, output, batch, model, metadata, retry_errors=retry_errors)
            output, wanted = self.lake.open(AI_QUERY_INFERENCE), {**expected, "statement": "one"}
            if need_of(output, batch, wanted, self.lake.open(PROD_DATA).version, settings) is not Need.NOTHING:
                try:
                    self.executor.answer(self, pinned, output, batch, wanted, retry_errors=retry_errors)
                except AiFunctionError as error:
                    assert self.faulty.fault == "closed", error
                except BatchAssetsError as error:
                    assert "requests of batch" in str(error)

    def _found(self, table: Table, batch: str) -> list[Row]:
        rows = [row for part in self.lake.open(table).read(batch) for row in part.to_pylist()]
        return _sorted(
            (row["id"], row["generated_summary"], row["error_class"] or (row["error_message"] and "no text"))
            for row in rows
        )

    def _requests(self) -> int:
        return (self.folder / "model" / "requests").stat().st_size + len(self.faulty.server.requests)

    @rule()
    def compare(self) -> None:
        """Repair everything, run everything once more, and compare the tables with the model of what is right."""
        self.fuse.left = None
        self.faulty.fault = None
        (self.folder / "model" / "broken").unlink(missing_ok=True)
        self._score(self.settings)
        before = [self.lake.open(table).version for table in DEFAULT_TABLES.all], self._requests()
        self._score(self.settings)
        assert ([self.lake.open(table).version for table in DEFAULT_TABLES.all], self._requests()) == before
        for table in (PROD_DATA, BATCH_INFERENCE, AI_QUERY_INFERENCE):
            expected = {batch for batch, content in self.documents.items() if content}
            assert set(self.lake.open(table).batches()) == expected, table.name
        for batch, content in self.documents.items():
            rows = [row for part in self.lake.open(PROD_DATA).read(batch) for row in part.to_pylist()]
            assert sorted((row["id"], row["document"]) for row in rows) == sorted(content)
            assert self._found(AI_QUERY_INFERENCE, batch) == _sorted(map(_by_endpoint, content))
            possible = [_sorted(_by_model(one, version) for one in content) for version in self.answered_by[batch]]
            assert self._found(BATCH_INFERENCE, batch) in possible

    @rule()
    def compare_more_often(self) -> None:
        """The same: a mistake is best found right after it was made."""
        self.compare()

    def teardown(self) -> None:
        """Compare once more, and remove the tables."""
        if hasattr(self, "folder"):
            self.compare()
            shutil.rmtree(self.folder)


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=str)


def _by_endpoint(document: Document) -> Row:
    key, text = document
    if text == EMPTY:
        return key, None, "no text"
    return (key, None, "document") if text == REFUSED else (key, f"endpoint: {text}", None)


def _by_model(document: Document, version: int) -> Row:
    key, text = document
    if text == EMPTY:
        return key, None, "no text"
    answer = answer_of_model(version, text)
    return key, answer.text, answer.error_class and str(answer.error_class)
