"""What worker processes run, in one place, so that they load this and not the storage and the reports."""

import pyarrow as pa

from jobs.preprocess.clean import clean_batch
from jobs.preprocess.duplicates import verify_pairs
from jobs.preprocess.encode import encode_rows
from jobs.preprocess.leaks import find_leaks
from jobs.preprocess.measure import case_counts
from jobs.preprocess.sampling import token_economy

# Once for all workers: the classes of all characters, and pandas, which pyarrow loads where it is installed.
case_counts([])
pa.array([])

__all__ = ["clean_batch", "encode_rows", "find_leaks", "token_economy", "verify_pairs"]
