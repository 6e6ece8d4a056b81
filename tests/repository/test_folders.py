"""The tests lie as the package does: a test of a folder in the folder of its name, few files in each."""

from places import ROOT, TESTS

# Beside the package's folders: the files that lie in none, the examples and notebooks, and the repository itself.
OTHERS = {"front_door", "examples", "repository"}
MOST_FILES = 20


def test_every_test_lies_in_a_folder_named_after_what_it_tests() -> None:
    files = list(TESTS.rglob("test_*.py"))
    package = {folder.name.removeprefix("_") for folder in (ROOT / "muon_optax").iterdir() if folder.is_dir()}
    misplaced = [str(file) for file in files if file.parent.name not in package | OTHERS or file.parents[1] != TESTS]
    assert misplaced == []
    sizes = {folder: len(list(folder.glob("test_*.py"))) for folder in {file.parent for file in files}}
    assert max(sizes.values()) <= MOST_FILES, sizes


def test_no_two_tests_have_one_name() -> None:
    """A page, a message and ``python benchmarks/quality/mutants.py`` name a test by its file alone."""
    names = [file.name for file in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names))
