"""Floor 0: publish, claim, lease, hash: the only code that makes things appear on a shared file system."""

from hpcmass.files.cache import cache_folder
from hpcmass.files.lease import Lease, Owner, boot_id, pid_namespace, process_start
from hpcmass.files.listing import matching
from hpcmass.files.log import LogReader, LogWriter, set_log_aside
from hpcmass.files.mounts import is_local
from hpcmass.files.names import check_name
from hpcmass.files.publish import (
    NoLinks,
    avoid_links,
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
    temporary_beside,
)
from hpcmass.files.records import append_record, read_last_records, read_records, read_records_from
from hpcmass.files.shared import file_mode, make_dir_as_parent, settle, settle_open, shared_mode

__all__ = [
    "Lease",
    "LogReader",
    "LogWriter",
    "NoLinks",
    "Owner",
    "append_record",
    "avoid_links",
    "boot_id",
    "cache_folder",
    "canonical_json",
    "check_name",
    "claim",
    "file_mode",
    "fsync_dir",
    "is_local",
    "make_dir",
    "make_dir_as_parent",
    "matching",
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
    "settle",
    "settle_open",
    "sha256_bytes",
    "sha256_file",
    "shared_mode",
    "storage_errors",
    "temporary_beside",
]
