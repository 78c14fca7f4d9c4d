"""Record forgotten documents by the SHA-256 of their ids, so that a source can't bring them back."""

import hashlib

import pyarrow.fs as pafs

from batch_assets.lake.contracts import PROD_DATA, Table
from batch_assets.lake.lake import Lake
from batch_assets.lake.storage import file_system
from batch_assets.names import check_name

_FOLDER = "_forgotten"


def digest_of(document_id: str) -> str:
    """Return the digest under which a forgotten document's id is recorded."""
    return hashlib.sha256(document_id.encode(errors="surrogatepass")).hexdigest()


def forgotten(lake: Lake) -> frozenset[str]:
    """Return the digests of all forgotten ids."""
    infos = _digest_files(lake).get_file_info(pafs.FileSelector("", allow_not_found=True))
    return frozenset(info.base_name for info in infos)


def remember(lake: Lake, document_id: str) -> None:
    """Record a document as forgotten."""
    # One file per id, so that concurrent calls don't conflict. Buffered: delta-rs accepts bytes, not Arrow buffers.
    with _digest_files(lake).open_output_stream(digest_of(document_id), compression=None, buffer_size=1024) as file:
        file.write(b"-")


def _digest_files(lake: Lake) -> pafs.FileSystem:
    parts = (lake.uri.rstrip("/"), check_name(lake.catalog), check_name(lake.schema), _FOLDER)
    return file_system("/".join(parts), lake.storage_options)


def known_as(documents: Table, document_id: str) -> str:
    """What a document is remembered by: the same id in another pipeline is another document."""
    return document_id if documents.name == PROD_DATA.name else f"{documents.name}/{document_id}"
