"""The table of memory in the documentation is what the estimate says."""

from scripts.memory_table import MARKS, PAGE, SIZES, write_table


def test_the_page_has_the_table_that_the_program_writes() -> None:
    match = MARKS.search(PAGE.read_text(encoding="utf-8"))
    assert match is not None
    assert match.group(0) == f"{match[1]}{write_table()}{match[2]}", "run make docs-config"


def test_the_table_has_full_fine_tuning_and_lora_of_every_size() -> None:
    rows = [line.split("|") for line in write_table().splitlines()[2:]]
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [
        (name, tuning) for name in SIZES for tuning in ("full", "LoRA 16")
    ]
    # 7 billion weights: 2 bytes each, 14 more for gradient and optimizer, before any activation
    full = next(row for row in rows if row[1].strip() == "7B")
    assert int(full[4].split()[0]) > 7.6e9 * 16 / (1 << 30) and full[7].strip() == "4"
    # a fourth of float32 weights, gradients and moments
    assert int(full[5].split()[0]) > 7.6e9 * 16 / 4 / (1 << 30)
