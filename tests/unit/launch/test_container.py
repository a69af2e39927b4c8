"""The words that bring a rank into its container: every value one word, every folder bound, no shell."""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.config import Target, load_site
from hpcmass.errors import ConfigError, LaunchError
from hpcmass.launch import ContainerSpec, check_versions, container_words, hpcmass_command, inside_container
from hpcmass.launch.container import outermost

BOX = Target(container="/images/box.sif")
# What a file name may hold, less what would end a path or is refused.
NAMES = st.text(st.characters(exclude_characters="\0\n\r/", codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


def bound(words: list[str]) -> dict[str, str]:
    """Source and destination of every bind, read as Apptainer reads them."""
    found = {}
    for option, value in itertools.pairwise(words):
        if option == "--bind":
            source, inside = value.split(":")[:2]
            found[source] = inside
        elif option == "--mount":
            fields = next(csv.reader([value]))
            pairs = dict(field.partition("=")[::2] for field in fields)
            assert pairs["type"] == "bind"
            found[pairs["source"]] = pairs["destination"]
    return found


def test_a_target_without_a_container_has_no_words() -> None:
    assert container_words(Target(), folders=["/project"], cwd="/project") == []


def test_the_words_in_their_order() -> None:
    words = container_words(BOX, folders=["/project"], cwd="/project/a b", version="1.2")
    assert words[0] == "env"
    start = words.index("apptainer")
    assert words[start:] == [
        "apptainer", "exec", "--bind", "/project:/project", "--pwd", "/project/a b", "/images/box.sif",
    ]  # fmt: skip
    assert "HPCMASS_OUTSIDE=1.2" in words[:start]
    assert "PYTHONNOUSERSITE=1" in words[:start]


@pytest.mark.parametrize(("vendor", "option"), [("nvidia", "--nv"), ("amd", "--rocm")])
def test_the_driver_of_a_vendor_is_brought_in_where_there_are_gpus(vendor: str, option: str) -> None:
    box = BOX.model_copy(update={"gpu_vendor": vendor, "gpus": 4})
    assert option in container_words(box)
    assert option not in container_words(box.model_copy(update={"gpus": 0}))


def test_binds_and_options_of_the_site_file() -> None:
    target = Target(
        container="$HOME/box.sif",
        container_binds=["/opt/cray", "/usr/lib64/pmi:/host/pmi:ro", "${SCRATCH}/x"],
        container_options=["--no-privs"],
    )
    words = container_words(target, env={"HOME": "/home/me", "SCRATCH": "/scratch/me"})
    assert words[-2:] == ["--no-privs", "/home/me/box.sif"]
    assert bound(words) == {
        "/opt/cray": "/opt/cray",
        "/usr/lib64/pmi": "/host/pmi",
        "/scratch/me/x": "/scratch/me/x",
    }
    assert "/usr/lib64/pmi:/host/pmi:ro" in words
    with pytest.raises(ConfigError, match="SCRATCH is not set"):
        container_words(target, env={"HOME": "/home/me"})


def test_the_hosts_own_python_and_mpi_stay_outside_unless_the_site_sets_them() -> None:
    words = container_words(BOX)
    dropped = {b for a, b in itertools.pairwise(words) if a == "-u"}
    assert {"PYTHONHOME", "PYTHONPATH", "OPAL_PREFIX", "PMIX_PREFIX"} <= dropped
    kept = container_words(BOX.model_copy(update={"env": {"OPAL_PREFIX": "/opt/openmpi"}}))
    assert "OPAL_PREFIX" not in kept


def test_env_starts_the_command_without_them() -> None:
    words = ContainerSpec("IMAGE", version="7", program=sys.executable).words()
    before = words[: words.index(sys.executable)]
    code = "import os; print(os.environ.get('PYTHONPATH'), os.environ['HPCMASS_OUTSIDE'], os.environ['KEPT'])"
    done = subprocess.run(
        [*before, sys.executable, "-c", code],
        env={"PYTHONPATH": "/nowhere", "KEPT": "a $(b) c", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None 7 a $(b) c"


@given(st.lists(st.lists(NAMES, min_size=1, max_size=3), min_size=1, max_size=4))
def test_every_folder_is_seen_inside_under_its_own_name(parts: list[list[str]]) -> None:
    folders = ["/" + "/".join(each) for each in parts]
    words = container_words(BOX, folders=folders, cwd=folders[0])
    seen = bound(words)
    assert all(source == inside for source, inside in seen.items())
    for folder in folders:
        assert any(folder == each or folder.startswith(each + "/") for each in seen), folder
    assert words[words.index("--pwd") + 1] == folders[0]
    assert words[-1] == "/images/box.sif"


def test_what_lies_in_another_folder_is_bound_with_it() -> None:
    assert outermost(["/a/b", "/a", "/ab", "/a/b/c", "/c/"]) == ["/a", "/ab", "/c"]
    with pytest.raises(ConfigError):
        outermost(["relative"])
    with pytest.raises(ConfigError):
        outermost(["/"])


@pytest.mark.parametrize("path", ["/a\nb", "/a\0b"])
def test_a_path_that_cannot_be_given_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        container_words(BOX, folders=[path])


def test_versions_are_held_against_each_other_inside_only() -> None:
    inside = {"APPTAINER_CONTAINER": "/images/box.sif", "HPCMASS_OUTSIDE": "1.1"}
    check_versions("1.1", inside)
    check_versions("1.0", {"HPCMASS_OUTSIDE": "1.1"})
    with pytest.raises(LaunchError, match=r"1\.0 in the container and 1\.1 outside") as caught:
        check_versions("1.0", inside)
    assert caught.value.where == "/images/box.sif"
    assert inside_container(inside)
    assert not inside_container({})


def test_in_a_container_the_images_python_and_hpcmass_run() -> None:
    words = hpcmass_command(in_container=True)
    assert words[0] == "python"
    assert sys.executable not in words
    assert str(Path(__file__).parents[3]) not in words[2]
    assert "sys.path" in words[2]


def test_a_relative_image_lies_beside_the_site_file(tmp_path: Path) -> None:
    file = tmp_path / "sites" / "here.toml"
    file.parent.mkdir()

    def image(text: str) -> str | None:
        file.write_text(f'name = "x"\ndefault_target = "cpu"\n[targets.cpu]\ncontainer = "{text}"\n')
        return load_site(file).targets["cpu"].container

    assert image("box.sif") == str(tmp_path / "sites" / "box.sif")
    assert image("../box.sif") == str(tmp_path / "box.sif")
    assert image("/abs/box.sif") == "/abs/box.sif"
    assert image("$HOME/box.sif") == "$HOME/box.sif"
    assert image("oras://site/box") == "oras://site/box"
