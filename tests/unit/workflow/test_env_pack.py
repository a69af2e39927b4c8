"""A virtual environment packed, unpacked elsewhere, and working there while the original is hidden."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass import __version__
from hpcmass.config import Target
from hpcmass.errors import ConfigError, CorruptError, NotFound
from hpcmass.workflow.env_pack import describe, pack, packed_of, read_packed, unpack


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with a package, a script, and one package installed in place."""
    root = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "env")], check=True)
    (site,) = (root / "env").glob("lib/python*/site-packages")
    (site / "plain").mkdir()
    (site / "plain/__init__.py").write_text("VALUE = 1\n")
    info = site / "plain-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1\n")
    source = root / "source" / "hpcmass"
    (source / "deep").mkdir(parents=True)
    (source / "__init__.py").write_text("VALUE = 2\n")
    (source / "deep/__init__.py").write_text("")
    (source / "data.txt").write_text("data")
    (site / "__editable__.hpcmass.pth").write_text(f"{source.parent}\n")
    info = site / "hpcmass-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hpcmass\nVersion: {__version__}\n")
    (info / "top_level.txt").write_text("hpcmass\n")
    url = {"url": f"file://{source.parent}", "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(url))
    script = root / "env/bin/tool"
    body = "import plain, hpcmass, sys; print(sys.prefix, plain.__file__, hpcmass.__file__)"
    script.write_text(f"#!{root}/env/bin/python\n{body}\n")
    script.chmod(0o755)
    (root / "env/bin/absolute").symlink_to(root / "env/bin/tool")
    return root


def test_it_works_elsewhere_without_the_original(made: Path, tmp_path: Path) -> None:
    done = pack(made / "env", tmp_path / "env.tar")
    assert done.inplace == ["hpcmass"]
    assert done.warnings == []
    hidden = made.rename(made.with_name("hidden"))
    try:
        where, said = unpack(tmp_path / "env.tar", str(tmp_path / "disk"))
        out = subprocess.run([str(where / "bin/absolute")], capture_output=True, text=True, check=True).stdout
    finally:
        hidden.rename(made)
    prefix, *files = out.split()
    assert prefix == str(where)
    assert all(file.startswith(str(where)) for file in files), files
    assert "unpacked" in said
    text = (where / "lib").rglob("data.txt")
    assert [file.read_text() for file in text] == ["data"]


def test_the_interpreter_is_in_it_unless_left_out(made: Path, tmp_path: Path) -> None:
    pack(made / "env", tmp_path / "with.tar", with_python=True)
    pack(made / "env", tmp_path / "without.tar", with_python=False)
    code = "import os, sys, json, ssl, ctypes; print(os.__file__, sys.base_prefix, sys.version.split()[0])"
    for name, inside in (("with", True), ("without", False)):
        where, _ = unpack(tmp_path / f"{name}.tar", str(tmp_path / name))
        python = str(where / "bin/python")
        out = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
        stdlib, base, version = out.split()
        assert stdlib.startswith(str(where)) is inside
        assert base.startswith(str(where)) is inside
        assert version == sys.version.split()[0] == read_packed(tmp_path / f"{name}.tar").python


@pytest.mark.parametrize("name", ["env.tar.gz", "env.tar.zst"])
def test_compressed(made: Path, tmp_path: Path, name: str) -> None:
    try:
        done = pack(made / "env", tmp_path / name, with_python=False)
    except ConfigError as error:
        pytest.skip(str(error))
    assert done.packed.bytes < done.packed.unpacked_bytes
    where, _ = unpack(tmp_path / name, str(tmp_path / "disk"))
    assert subprocess.run([str(where / "bin/tool")], check=True).returncode == 0


def test_packing_again_replaces_and_another_archive_is_refused(made: Path, tmp_path: Path) -> None:
    first = pack(made / "env", tmp_path / "env.tar", with_python=False).packed
    again = pack(made / "env", tmp_path / "env.tar", with_python=False).packed
    assert read_packed(tmp_path / "env.tar").sha256 == again.sha256
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["env.tar", "env.tar.json"]
    (tmp_path / "env.tar").write_bytes(b"short")
    with pytest.raises(CorruptError, match="has 5 bytes"):
        read_packed(tmp_path / "env.tar")
    assert first.bytes == again.bytes


def test_what_is_outside_is_told(made: Path, tmp_path: Path) -> None:
    (site,) = (made / "env").glob("lib/python*/site-packages")
    (site / "more.pth").write_text("/opt/elsewhere\nimport os\n")
    (made / "env/bin/outer").symlink_to("/bin/sh")
    (site / "native.so").write_bytes(b"\x7fELF\0" + f"{made}/env/lib\0".encode())
    try:
        warnings = pack(made / "env", tmp_path / "env.tar", with_python=False).warnings
    finally:
        (site / "more.pth").unlink()
        (site / "native.so").unlink()
        (made / "env/bin/outer").unlink()
    assert len(warnings) == 3
    assert any("/opt/elsewhere" in line for line in warnings)
    assert any("bin/outer is a link to /bin/sh" in line for line in warnings)
    assert any("native.so" in line for line in warnings)


def test_packages_of_the_interpreters_own_are_told_or_refused(made: Path, tmp_path: Path) -> None:
    """As in an environment of `venv --system-site-packages`; its jobs would not find them."""
    base = tmp_path / "base"
    for name in ("numpy", "other-thing"):
        info = base / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (site,) = (made / "env").glob("lib/python*/site-packages")
    (site / "base.pth").write_text(f"import sys; sys.path.append({str(base)!r})\n")
    (metadata,) = site.glob("hpcmass-*.dist-info/METADATA")
    config, was = made / "env/pyvenv.cfg", metadata.read_text()
    alone = config.read_text()
    assert "include-system-site-packages = false" in alone
    try:
        assert pack(made / "env", tmp_path / "alone.tar", with_python=False).warnings == []
        config.write_text(alone.replace("packages = false", "packages = true"))
        (warning,) = pack(made / "env", tmp_path / "env.tar", with_python=False).warnings
        assert "packages outside the environment are not packed" in warning
        metadata.write_text(f"{was}Requires-Dist: numpy>=1.26\nRequires-Dist: other.thing; extra == 'x'\n")
        with pytest.raises(ConfigError, match="takes numpy from outside"):
            pack(made / "env", tmp_path / "env.tar", with_python=False)
    finally:
        (site / "base.pth").unlink()
        config.write_text(alone)
        metadata.write_text(was)


def test_what_cannot_be_packed_is_refused_and_leaves_nothing(made: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no virtual environment"):
        pack(tmp_path, tmp_path / "env.tar")
    with pytest.raises(ConfigError, match="expected a name ending in"):
        pack(made / "env", tmp_path / "env.zip")
    with pytest.raises(NotFound, match="there is no such archive"):
        read_packed(tmp_path / "env.tar")
    assert list(tmp_path.iterdir()) == []


def test_a_target_takes_only_an_environment_of_this_version(made: Path, tmp_path: Path) -> None:
    archive = tmp_path / "env.tar"
    pack(made / "env", archive, with_python=False)
    target = Target(kind="slurm", cores=1, environment=str(archive))
    assert packed_of(target) == read_packed(archive)
    assert packed_of(Target(kind="slurm", cores=1)) is None
    text = describe(archive).read_text().replace(f'"hpcmass": "{__version__}"', '"hpcmass": "0.0.9"')
    describe(archive).write_text(text)
    with pytest.raises(ConfigError, match=r"the environment holds hpcmass 0\.0\.9"):
        packed_of(target)
