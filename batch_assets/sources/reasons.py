"""Reasons for rejecting a record. ``m4_1_prod_data_rejected`` stores these texts, so they must not change."""

from enum import StrEnum


class Reason(StrEnum):
    """A reason; the parts in braces depend on the record."""

    NO_FIELD = "there is no field '{field}'"
    NOT_TEXT = "{field} is {type}, not text"
    ODD_ID = "id is {type}, neither text nor a whole number"
    NOT_UTF8 = "{field} has characters that are not valid UTF-8"
    ID_AGAIN = "the id {id!r} is in this batch already"
    FORGOTTEN = "forgotten on request"
    LONG_LINE = "line {line} is longer than {most} characters"
    NOT_JSON = "line {line} is not JSON: {error}"
    NO_OBJECT = "line {line} is not a JSON object"
    NOT_CSV = "the record after line {line} is not CSV: {error}"
    MORE_FIELDS = "there are {columns} columns, but more fields"
    FEWER_FIELDS = "there are {columns} columns, but fewer fields"
    UNREADABLE_VALUE = "a value can't be read: {type}: {error}"
    LONG_VALUE = "a value is longer than {most} characters"
    UNREADABLE_FILE = "the file can't be read from here on: {error}"
