"""What worker processes run, in one place, so that they load this and not the storage and the reports."""

from jobs.preprocess.clean import clean_batch
from jobs.preprocess.duplicates import verify_pairs
from jobs.preprocess.encode import encode_rows
from jobs.preprocess.leaks import find_leaks

__all__ = ["clean_batch", "encode_rows", "find_leaks", "verify_pairs"]
