"""Floor 0: publish, claim, lease, hash: the only code that makes things appear on a shared file system."""

from hpcmass.files.cache import cache_folder
from hpcmass.files.lease import Lease, Owner, boot_id, pid_namespace, process_start
from hpcmass.files.log import LogReader, LogWriter, set_log_aside
from hpcmass.files.names import check_name
from hpcmass.files.publish import (
    NoLinks,
    canonical_json,
    claim,
    fsync_dir,
    make_dir,
    publish,
    publish_json,
    publishing,
    read_json,
    replace,
    replace_json,
    sha256_bytes,
    sha256_file,
    storage_errors,
)
from hpcmass.files.records import append_record, read_last_records, read_records, read_records_from

__all__ = [
    "Lease",
    "LogReader",
    "LogWriter",
    "NoLinks",
    "Owner",
    "append_record",
    "boot_id",
    "cache_folder",
    "canonical_json",
    "check_name",
    "claim",
    "fsync_dir",
    "make_dir",
    "pid_namespace",
    "process_start",
    "publish",
    "publish_json",
    "publishing",
    "read_json",
    "read_last_records",
    "read_records",
    "read_records_from",
    "replace",
    "replace_json",
    "set_log_aside",
    "sha256_bytes",
    "sha256_file",
    "storage_errors",
]
