"""Bad input: a plain message, exit code 2, no traceback, nothing left behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data.shardfile import system_error

Lab = object  # the fixture's type lives in conftest


def refused(lab, *words: str, says: list[str], keeps: bool = True):  # type: ignore[no-untyped-def]
    before = lab.tree()
    answer = lab.hpcmass(*words)
    assert answer.code == 2, answer.text
    assert "Traceback" not in answer.text
    for word in says:
        assert word in answer.text, answer.text
    if keeps:
        assert lab.tree() == before
    return answer


def test_a_missing_job_file(lab) -> None:  # type: ignore[no-untyped-def]
    refused(lab, "train", "nope.toml", says=["nope.toml", "no such file"])


def test_a_missing_data_file(lab) -> None:  # type: ignore[no-untyped-def]
    refused(lab, "shard", "nope.npz", "--out", "data/other", says=["nope.npz"])


def test_a_missing_dataset(lab) -> None:  # type: ignore[no-untyped-def]
    refused(lab, "train", "job.toml", "--set", "data.train=data/nope", says=["data/nope"])


def test_a_typing_error_in_the_job_file(lab) -> None:  # type: ignore[no-untyped-def]
    (lab.root / "job.toml").write_text((lab.root / "job.toml").read_text().replace("epochs", "epocs"))
    refused(lab, "train", "job.toml", says=["job.toml:9", "train.epocs", "did you mean 'epochs'"])


def test_a_truncated_shard(lab) -> None:  # type: ignore[no-untyped-def]
    shard = lab.root / "data/tiny/train/shard-00000.h5"
    shard.chmod(0o644)
    os.truncate(shard, shard.stat().st_size - 100)
    refused(lab, "train", "job.toml", says=["shard-00000.h5"])
    refused(lab, "data", "verify", "data/tiny/train", says=["shard-00000.h5"])


def test_a_checksum_that_does_not_fit(lab) -> None:  # type: ignore[no-untyped-def]
    shard = lab.root / "data/tiny/train/shard-00001.h5"
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused(lab, "data", "verify", "data/tiny", says=["shard-00001.h5", "checksum"])


@pytest.mark.parametrize("name", ["../out", "a/b", "$(touch pwned)", "", "-x", ".hidden", "a b"])
def test_a_name_that_leads_elsewhere(lab, name: str) -> None:  # type: ignore[no-untyped-def]
    refused(lab, "train", "job.toml", "--run", name or "''", says=["not allowed"])
    refused(lab, "train", "job.toml", "--set", f"name={name or ' '}", says=["not allowed"])
    assert not (lab.root / "pwned").exists()


def test_a_recipe_that_raises(lab) -> None:  # type: ignore[no-untyped-def]
    (lab.root / "recipe.py").write_text("def build_model(params):\n    return params['width']\n")
    answer = refused(lab, "train", "job.toml", says=["recipe.py:2", "KeyError", "width"], keeps=False)
    assert not list(lab.root.glob("runs/*/model"))
    assert answer.code == 2


def test_a_recipe_that_is_not_python(lab) -> None:  # type: ignore[no-untyped-def]
    (lab.root / "recipe.py").write_text("def build_model(params:\n")
    refused(lab, "job", "check", "job.toml", says=["recipe.py:1"])


def test_a_nan_loss(lab) -> None:  # type: ignore[no-untyped-def]
    text = (lab.root / "recipe.py").read_text()
    (lab.root / "recipe.py").write_text(
        text + "\ndef loss(outputs, targets):\n    return outputs.sum() * float('nan')\n"
    )
    refused(lab, "train", "job.toml", says=["nan", "step"], keeps=False)
    answer = lab.hpcmass("why", "tiny")
    assert "nan" in answer.text.lower()
    assert "lr" in answer.text


def test_a_corrupted_checkpoint(lab) -> None:  # type: ignore[no-untyped-def]
    assert lab.hpcmass("train", "job.toml").code == 0
    newest = max((lab.root / "runs/tiny/checkpoints").glob("*.safetensors"))
    newest.chmod(0o644)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.write_bytes(data)
    answer = lab.hpcmass("train", "job.toml", "--set", "train.epochs=4")
    assert answer.code == 2, answer.text
    assert newest.name in answer.text
    assert "Traceback" not in answer.text


def in_a_process(lab, *words: str, **options: object) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    return subprocess.run(
        [sys.executable, "-m", "hpcmass", *words],
        cwd=lab.root,
        capture_output=True,
        text=True,
        timeout=400,
        **options,
    )  # type: ignore[call-overload,no-any-return]


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_full_disk_while_sharding(lab) -> None:  # type: ignore[no-untyped-def]
    before = lab.tree()
    done = in_a_process(lab, "shard", "tiny.npz", "--out", "data/full", preexec_fn=limit_files)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert lab.tree() == before


def test_a_full_disk_while_training(lab) -> None:  # type: ignore[no-untyped-def]
    done = in_a_process(lab, "train", "job.toml", preexec_fn=limit_files)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(lab.root.glob("runs/tiny/checkpoints/*.json"))
    assert not list(lab.root.glob("runs/tiny/checkpoints/.*"))
    assert lab.hpcmass("train", "job.toml").code == 0


def read_only(root: Path, words: list[str]) -> list[str]:
    """The command with `root` mounted read-only: permissions alone do not hold root back."""
    command = [sys.executable, "-m", "hpcmass", *words]
    if os.getuid() != 0:
        return command
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(root), *command]


def test_an_unwritable_folder(lab) -> None:  # type: ignore[no-untyped-def]
    folders = [p for p in [lab.root, *lab.root.rglob("*")] if p.is_dir()]
    before = lab.tree()
    try:
        if os.getuid() != 0:
            for folder in folders:
                folder.chmod(0o555)
        for words in (["train", "job.toml"], ["shard", "tiny.npz", "--out", "data/no"], ["init", "sub"]):
            done = subprocess.run(
                read_only(lab.root, words), cwd=lab.root, capture_output=True, text=True, timeout=400
            )
            assert done.returncode == 2, done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            assert "ermission denied" in done.stderr or "ead-only file system" in done.stderr
            assert lab.tree() == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_an_unknown_model_names_the_nearest(lab) -> None:  # type: ignore[no-untyped-def]
    assert lab.hpcmass("train", "job.toml").code == 0
    assert lab.hpcmass("catalogue", "register", "tiny").code == 0
    refused(lab, "catalogue", "show", "tinny", says=["tiny"])
    refused(lab, "predict", "tiny@prod", "data/tiny/test", says=["prod"])


def test_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text((lab.root / "job.toml").read_text())
    (tmp_path / "recipe.py").write_text((lab.root / "recipe.py").read_text())
    answer = lab.hpcmass("train", "job.toml")
    assert answer.code == 2
    assert "hpcmass init" in answer.text
    assert lab.hpcmass("train", str(lab.root / "job.toml")).code == 0, "the project beside the job file"


def test_an_optimizer_that_does_not_exist(lab) -> None:  # type: ignore[no-untyped-def]
    refused(
        lab, "job", "check", "job.toml", "--set", "train.optimizer=Adamm", says=["Adamm", "did you mean 'Adam"]
    )


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("train=nan,test=0.3", "not between 0 and 1"),
        ("train=inf,test=0.3", "not between 0 and 1"),
        ("train=0.5,train=1", "named twice"),
    ],
)
def test_impossible_shares(lab, split: str, says: str) -> None:  # type: ignore[no-untyped-def]
    refused(lab, "shard", "tiny.npz", "--out", "data/other", "--split", split, says=[says])


def test_a_field_with_a_reserved_name(lab) -> None:  # type: ignore[no-untyped-def]
    np.savez(lab.root / "reserved.npz", sample_id=np.zeros((4, 2)), label=np.arange(4))
    refused(lab, "shard", "reserved.npz", "--out", "data/other", says=["'sample_id'"])


def test_the_only_input_as_class(lab) -> None:  # type: ignore[no-untyped-def]
    words = ["--strategy", "stratified", "--by", "x"]
    refused(lab, "shard", "tiny.npz", "--out", "data/other", *words, says=["goes by x"])


def test_a_folder_that_holds_a_dataset(lab) -> None:  # type: ignore[no-untyped-def]
    answer = refused(lab, "shard", "tiny.npz", "--out", "data/tiny", says=["holds a dataset already"])
    assert "overwrite" not in answer.text  # the command has no such option


def test_more_ranks_than_a_batch_has_samples(lab) -> None:  # type: ignore[no-untyped-def]
    refused(lab, "train", "job.toml", "--ranks", "17", says=["17 ranks", "global batch of 16"])


def test_an_empty_list_of_choices(lab) -> None:  # type: ignore[no-untyped-def]
    with (lab.root / "job.toml").open("a") as file:
        file.write('[sweep]\n[sweep.space]\nwidth = { type = "categorical", choices = [] }\n')
    refused(lab, "job", "check", "job.toml", says=["expected at least one item"])


def test_a_command_with_an_unknown_name(lab) -> None:  # type: ignore[no-untyped-def]
    (lab.root / "own.toml").write_text(
        'name = "own"\ncommand = "python train.py --lr {lr}"\n[sweep]\ntrials = 3\nmetric = "loss"\n'
        '[sweep.space]\nlrr = { type = "float", low = 0.1, high = 1.0 }\n'
    )
    refused(lab, "sweep", "own.toml", says=["'{lr}' is no parameter", "did you mean '{lrr}'"])


def test_a_full_disk_is_named_without_the_text_of_hdf5() -> None:
    said = RuntimeError(
        "flush failed (time = Mon\n, errno = 28, error message = 'No space left on device', buf = 0x1)"
    )
    found = system_error(said)
    assert (found.errno, str(found)) == (errno.ENOSPC, "[Errno 28] No space left on device")
    assert str(system_error(RuntimeError("something else"))) == "something else"


def test_a_stray_word_in_a_column_of_numbers(lab) -> None:  # type: ignore[no-untyped-def]
    rows = "\n".join(["1,2,0"] * 10 + ["abc,3,1"])
    (lab.root / "mixed.csv").write_text(f"a,b,label\n{rows}\n")
    refused(lab, "shard", "mixed.csv", "--out", "data/mixed", "--target", "label", says=["column a", "'abc'"])


def test_flipped_bytes_are_seen_before_training(lab) -> None:  # type: ignore[no-untyped-def]
    shard = lab.root / "data/tiny/train/shard-00001.h5"
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[4096] ^= 1  # the last bit of the first number
    shard.write_bytes(data)
    refused(lab, "train", "job.toml", says=["shard-00001.h5", "checksum"])
    assert lab.hpcmass("train", "job.toml", "--set", 'data.verify="never"').code == 0
