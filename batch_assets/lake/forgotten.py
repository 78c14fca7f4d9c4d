"""Documents that are to be kept away, by the SHA-256 of their ids: a source that holds one can't bring it back."""

import hashlib

import pyarrow.fs as pafs

from batch_assets.lake.lake import Lake
from batch_assets.lake.names import check_name
from batch_assets.lake.storage import file_system

_FOLDER = "_forgotten"


def digest_of(document_id: str) -> str:
    """What is kept of the id of a forgotten document."""
    return hashlib.sha256(document_id.encode(errors="surrogatepass")).hexdigest()


def forgotten(lake: Lake) -> frozenset[str]:
    """Digests of the ids that are to be kept away."""
    infos = _notes(lake).get_file_info(pafs.FileSelector("", allow_not_found=True))
    return frozenset(info.base_name for info in infos)


def note(lake: Lake, document_id: str) -> None:
    """Keep a document away from now on."""
    # A file for each, so that two people may forget at once. Buffered: delta-rs takes bytes, not buffers of Arrow's.
    with _notes(lake).open_output_stream(digest_of(document_id), compression=None, buffer_size=1024) as file:
        file.write(b"-")


def _notes(lake: Lake) -> pafs.FileSystem:
    places = (lake.uri.rstrip("/"), check_name(lake.catalog), check_name(lake.schema), _FOLDER)
    return file_system("/".join(places), lake.storage_options)
