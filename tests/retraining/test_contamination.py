from steptool.records import Query
from steptool.retraining.gate import find_contaminated, read_trained_on, write_trained_on


def query(text, split="train"):
    return Query(f"id of {text}", split, "desk", text, ())


def test_a_model_lists_the_training_tasks_of_itself_and_of_the_models_before_it(tmp_path):
    assert read_trained_on(str(tmp_path)) == frozenset()
    write_trained_on(tmp_path, [query("a"), query("b", "heldout")], frozenset())
    first = read_trained_on(str(tmp_path))
    write_trained_on(tmp_path, [query("c"), query("d", "validation")], first)
    both = read_trained_on(f"file://{tmp_path}")
    held_out = [query(text, "heldout") for text in ("  a ", "b", "c", "d")]  # white space makes no other task
    assert find_contaminated(held_out, first) == {"id of   a "}
    assert find_contaminated(held_out, both) == {"id of   a ", "id of c"}
