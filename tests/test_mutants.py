"""The list of mutants fits the code and the tests. `scripts/mutants.py` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import mutants

ROOT = Path(__file__).parents[1]


def test_every_mutant_changes_one_place_and_names_a_test() -> None:
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names)
    for mutant in mutants.MUTANTS:
        assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1, mutant.name
        file, _, test = mutant.test.partition("::")
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), mutant.name
        assert (ROOT / file).is_file(), mutant.name


def test_a_mutant_that_no_test_notices_survives_and_the_code_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "code_of_this.py").write_text("VALUE = 1\nOTHER = 2\n")
    (tmp_path / "test_code.py").write_text(
        "import code_of_this\n\ndef test() -> None:\n    assert code_of_this.VALUE\n"
    )

    def found(old: str, new: str) -> bool:
        mutant = mutants.Mutant(name="it", file="code_of_this.py", old=old, new=new, test="test_code.py")
        return bool(mutants.run(mutant, tmp_path))

    assert found("VALUE = 1", "VALUE = 0")
    assert not found("OTHER = 2", "OTHER = 3")
    assert (tmp_path / "code_of_this.py").read_text() == "VALUE = 1\nOTHER = 2\n"
    with pytest.raises(RuntimeError, match="did not run"):
        found("VALUE = 1", "VALUE = ")
    with pytest.raises(RuntimeError, match="must occur once"):
        found(" = ", " = 5")


def test_shares_make_the_whole() -> None:
    taken = [mutant for number in range(1, 10) for mutant in mutants.MUTANTS[number - 1 :: 9]]
    assert sorted(mutant.name for mutant in taken) == sorted(mutant.name for mutant in mutants.MUTANTS)
    assert mutants.share("3/9") == (3, 9)
    with pytest.raises(ValueError, match="1/N"):
        mutants.share("0/9")
